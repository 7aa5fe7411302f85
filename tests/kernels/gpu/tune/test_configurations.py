import json

import pytest
from dq_kernels.cpu.library import KernelInputError
from dq_kernels.gpu import ARCHITECTURES
from dq_kernels.gpu.tune.candidates import candidates, shared_bytes
from dq_kernels.gpu.tune.configurations import (
    FORMS,
    PRODUCTS,
    SHARED_BYTES,
    SM_COUNT,
    BlockConfiguration,
    ProductConfiguration,
    architecture_of,
    channel_block,
    choose,
    configuration_from,
    default_table,
    fit_to_pitch,
    load_table,
    next_power,
    splits_for,
)

OPS = ("quantize", "group_norm_silu_quantize", "layer_norm_quantize", "geglu_quantize", *PRODUCTS)
LARGE = ProductConfiguration(block_m=128, block_n=128, block_k=128, warps=8, stages=3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("op", OPS)
def test_the_default_table_has_a_rule_for_every_shape_that_fits_the_architecture(op, architecture):
    for m in (1, 33, 513, 8192, 1 << 20):
        for n in (1, 33, 640, 10240):
            for bits in (4, 8):
                found = choose(op, architecture, {"m": m, "n": n, "k": m, "bits": bits})
                if isinstance(found, ProductConfiguration):
                    sizes = (found.block_m, found.block_n, found.block_k, found.stages, bits)
                    assert shared_bytes(*sizes) <= SHARED_BYTES[architecture]


def test_the_default_rules_are_valid_and_marked_as_not_measured():
    assert len(load_table()) == len(default_table())
    assert {rule["op"] for rule in default_table()} == set(OPS)
    from dq_kernels.gpu.tune.configurations import TABLE_FILE

    assert "not measured" in json.loads(TABLE_FILE.read_text())["source"]


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [
        ((8, 0), 80),
        ((8, 6), 86),
        ((8, 7), 86),
        ((8, 9), 89),
        ((9, 0), 90),
        ((10, 0), 100),
        ((10, 3), 100),
        ((12, 1), 120),
    ],
)
def test_a_capability_gets_the_newest_row_that_is_not_newer(capability, architecture):
    assert architecture_of(capability) == architecture
    assert architecture in SM_COUNT


@pytest.mark.parametrize("capability", [(7, 5), (6, 1)])
def test_a_gpu_that_is_too_old_is_refused(capability):
    with pytest.raises(KernelInputError, match=r"has compute capability .*, the kernels need 8.0 or newer"):
        architecture_of(capability)


def test_blocks_divide_the_rows_of_weights_where_they_can():
    assert fit_to_pitch(LARGE, 1280).block_k == 128
    assert fit_to_pitch(LARGE, 320).block_k == 64
    assert fit_to_pitch(LARGE, 160) == ProductConfiguration(**{**LARGE.__dict__, "block_k": 32, "stages": 5})
    assert fit_to_pitch(LARGE, 16).block_k == 32
    assert fit_to_pitch(LARGE, 48).block_k == 64


def test_splits_fill_the_gpu_and_leave_each_part_four_steps():
    small = ProductConfiguration(block_m=64, block_n=64, block_k=128, warps=4, stages=3)
    assert splits_for(small, 90, 128, 1280, 90) == 3
    assert splits_for(small, 90, 1 << 20, 1280, 90) == 1
    assert splits_for(small, 90, 64, 64, 7) == 1
    assert splits_for(ProductConfiguration(**{**small.__dict__, "splits": 5}), 90, 64, 64, 3) == 3


def test_channel_blocks_waste_little():
    assert [channel_block(n, 256) for n in (3, 33, 64, 320, 640, 1280, 960)] == [16, 16, 64, 64, 128, 256, 64]
    assert [next_power(n) for n in (0, 1, 3, 64, 65)] == [1, 1, 4, 64, 128]


@pytest.mark.parametrize("bits", [8, 4])
def test_candidates_fit_every_architecture(bits):
    for architecture in ARCHITECTURES:
        found = candidates("int_conv2d", architecture, bits)
        assert 10 < len(found) == len(set(found)) <= 30
        assert {one.form for one in candidates("group_norm_silu_quantize", architecture)} == set(FORMS)
        for one in found:
            assert configuration_from("int_conv2d", one.__dict__) == one


@pytest.mark.parametrize("architecture", [80, 89, 90])
def test_a_tuning_of_stable_diffusion_is_a_few_hundred_configurations(architecture):
    from dq_kernels.gpu.ahead_of_time.shapes import float_facts, product_facts
    from dq_kernels.gpu.launch.weights import int4_pitch
    from dq_kernels.gpu.tune.tuning import shapes_of_model

    tried = 0
    for op, case, bits in shapes_of_model("sd15"):
        facts = product_facts(op, case, bits) if bits else float_facts(op, case)
        pitch = {8: case.channels, 4: int4_pitch(case.channels)}.get(bits, 0)
        found = candidates(op, architecture, bits or 8, facts or None, pitch)
        assert 1 <= len(found) <= 25
        tried += len(found)
    assert tried < 500


def test_what_is_left_out_wastes_its_tiles_or_leaves_multiprocessors_idle():
    few = {"m": 128, "n": 1280, "k": 11520, "bits": 8}
    many = {"m": 8192, "n": 320, "k": 2880, "bits": 8}
    assert {one.block_m for one in candidates("int_conv2d", 90, 8, few)} <= {64, 128}
    tiles = {(one.block_m, one.block_n) for one in candidates("int_conv2d", 80, 8, many)}
    assert (128, 64) in tiles
    assert not tiles & {(16, 64), (128, 16)}
    assert candidates("int_conv2d", 80, 8, many, 320) == [
        one for one in candidates("int_conv2d", 80, 8, many, 320) if 320 % one.block_k == 0
    ]
    forms = {one.form for one in candidates("group_norm_silu_quantize", 90, 8, {"m": 64, "k": 81920})}
    assert forms == {"split"}


@pytest.mark.parametrize(
    ("op", "values", "reason"),
    [
        ("int_linear", {**LARGE.__dict__, "block_m": 96}, "block_m of int_linear is 96, expected a power of 2"),
        ("int_linear", {**LARGE.__dict__, "block_k": 16}, "block_k of int_linear is 16"),
        ("int_conv2d", {**LARGE.__dict__, "stages": 0}, "stages, group_m or splits out of range"),
        ("quantize", {"elements": 1000, "warps": 4}, "elements of quantize is 1000"),
        ("quantize", {"elements": 1024, "warps": 4, "form": "other"}, "form whole, resident, split"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(op, values, reason):
    with pytest.raises(KernelInputError, match=reason):
        configuration_from(op, values)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": 1}', '{"format": 1, "rules": [{"op": "quantize", "use": {"a": 1}}]}']
)
def test_a_file_that_is_no_table_is_refused(tmp_path, text):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(KernelInputError, match="is no table of configurations"):
        load_table(path)
    path.write_text('{"format": 9, "rules": []}')
    with pytest.raises(KernelInputError, match="has format 9, expected 1; tune again"):
        load_table(path)


def test_block_configurations_are_values():
    assert BlockConfiguration(elements=64, warps=4) == BlockConfiguration(elements=64, warps=4)


RULE = {"op": "int_linear", "m": [1, 32], "use": dict(LARGE.__dict__)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"op": "nope"}, "op 'nope', expected one of"),
        ({"m": 5}, r"m of a rule of int_linear is 5, expected \[least, most\]"),
        ({"k": ["a", "b"]}, r"expected \[least, most\]"),
        ({"n": [10, 1]}, r"expected \[least, most\]"),
        ({"mm": [1, 2]}, r"has \['mm'\], expected m, n, k or bits"),
        ({"architectures": 80}, "architectures of a rule are 80"),
        ({"architectures": [77]}, r"architectures of a rule are \[77\]"),
        (
            {"use": {**LARGE.__dict__, "block_m": 1 << 40}},
            "block_m of int_linear is 1099511627776, expected a power of 2",
        ),
        ({"use": {**LARGE.__dict__, "warps": True}}, "warps of int_linear is True"),
        ({"use": {**LARGE.__dict__, "block_k": 32.0}}, r"block_k of int_linear is 32\.0"),
    ],
)
def test_a_rule_that_could_not_be_used_is_refused_when_the_table_is_read(tmp_path, change, words):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"format": 1, "rules": [RULE]}))
    load_table(path)
    path.write_text(json.dumps({"format": 1, "rules": [RULE | change]}))
    with pytest.raises(KernelInputError, match=words):
        load_table(path)


def test_a_table_nested_without_end_is_one_line(tmp_path):
    path = tmp_path / "table.json"
    path.write_text("[" * 100_000)
    with pytest.raises(KernelInputError, match="is no table of configurations"):
        load_table(path)


def test_a_table_of_ones_own_stands_in_front_of_the_default_one(tmp_path, monkeypatch):
    use = {"block_m": 64, "block_n": 64, "block_k": 64, "warps": 2, "stages": 2, "group_m": 1, "splits": 1}
    mine = tmp_path / "table.json"
    mine.write_text(json.dumps({"format": 1, "rules": [{"op": "int_linear", "m": [1, 100], "use": use}]}))
    small, large = ({"m": m, "n": 320, "k": 320, "bits": 8} for m in (50, 5000))
    before = choose("int_linear", 90, large)
    monkeypatch.setenv("DQ_KERNELS_TILES", str(mine))
    assert choose("int_linear", 90, small) == ProductConfiguration(**use)
    assert choose("int_linear", 90, large) == before
    monkeypatch.setenv("DQ_KERNELS_TILES", str(tmp_path / "gone.json"))
    with pytest.raises(KernelInputError, match=r"gone.json is no table of configurations .*; write one with dq-tune"):
        choose("int_linear", 90, small)
