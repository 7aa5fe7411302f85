"""The native engine is proven layer by layer, and each fault in it is found, with the layer named."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
from dq_kernels.cpu.library import known_isas

from dq_deploy import save_record, verify
from dq_deploy.engines.capabilities import LayerForm
from dq_deploy.errors import OptionError
from dq_deploy.native import runner as runner_module
from dq_deploy.native.cpu.arguments import struct_of
from dq_deploy.native.runner import NativeRunner
from dq_deploy.verify.layers.attestation import PAIR_LIMIT
from dq_deploy.verify.native.prover import kernel_of
from dq_deploy.verify.prover import ProofOptions
from dq_deploy.verify.report.page import page_of_report
from tests.cli.running import command
from tests.tiny import random_record, tiny_conditional_denoiser, tiny_denoiser
from tests.verify.native.proving import proof_of

LAYER = "down_blocks.1.resnets.0.conv2"
OTHER = "up_blocks.1.resnets.0.conv1"
QUICK = ProofOptions(steps=2, inputs=1)
PLAIN = {"down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"]}


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    """Each denoiser is traced once at each size for all tests here."""
    programs = {}
    trace = runner_module.traced_program

    def cached(record, sizes=None):
        key = json.dumps(
            [
                dict(record.model_config),
                {n: [len(p.pre) for p in x.parts] for n, x in record.layers.items()},
                dict(sizes or {}),
            ]
        )
        if key not in programs:
            programs[key] = trace(record, sizes)
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "traced_program", cached)
        patch.setattr("dq_deploy.native.cpu.executor.KEPT_PLANS", 16)  # a damaged plan must not be made again
        yield


@pytest.fixture(scope="module")
def record():
    return random_record(tiny_denoiser(**PLAIN), steps=4)


def proven(record, engine=None, *, damage=lambda _runner: None, isa=None):
    """A proof of a runner of `engine`, or of the record itself, damaged once it is open."""
    own = copy.deepcopy(engine or record)  # no memory in common with what it is held against
    with NativeRunner(own, threads=1, isa=isa, finite_check=False) as runner:
        damage(runner)
        return proof_of(record, runner, QUICK)


def with_layer(record, name, **changes):
    return dataclasses.replace(
        record, layers={**record.layers, name: dataclasses.replace(record.layers[name], **changes)}
    )


def with_part(record, name, **changes):
    part = dataclasses.replace(record.layers[name].parts[0], **changes)
    return with_layer(record, name, parts=(part, *record.layers[name].parts[1:]))


def differing(report):
    return {layer.name for layer in report.layers if layer.status == "differs"}


def is_exact(report, record):
    assert report.failures == ()
    assert report.max_code_difference == report.max_accumulator_difference == 0
    assert report.layers_compared == report.layers_total == len(record.layers)
    assert {layer.status for layer in report.layers} == {"exact"}
    assert max(cell.max_output_difference for layer in report.layers for cell in layer.steps) == 0
    assert {cell.bucket for layer in report.layers for cell in layer.steps} == set(range(record.steps))
    assert report.edges_checked == record.steps - 1
    assert report.batch_equals_single
    assert report.output_psnr_db == 200
    assert report.float_path_difference < 1e-5
    assert min(layer.codes_probed for layer in report.layers) > 0
    assert min(layer.accumulators_probed for layer in report.layers) > 0


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(4, 8), (8, 8)])
def test_every_layer_is_exact_on_every_instruction_set(tmp_path, weight_bits, activation_bits):
    record = random_record(tiny_denoiser(**PLAIN), weight_bits=weight_bits, activation_bits=activation_bits, steps=3)
    save_record(record, tmp_path / "model.pt")
    report = verify(record, tmp_path / "model.pt", steps=2, inputs=1, threads=1, isa="all")
    is_exact(report, record)
    assert [n for n in known_isas() if any(note.startswith(f"{n}: exact") for note in report.notes)] == [
        *known_isas()[:-1]
    ]
    kernels = {op for layer in report.layers for op in layer.executed}
    assert kernels == {f"int_conv2d {known_isas()[-1]}", f"int_linear {known_isas()[-1]}"}
    kept = {"uint8", "int4" if weight_bits == 4 else "int8"}
    assert {kind for layer in report.layers for pair in layer.operands for kind in pair} == kept


@pytest.mark.parametrize("sdxl", [False, True])
def test_a_text_conditioned_denoiser_is_exact(sdxl):
    record = random_record(tiny_conditional_denoiser(sdxl=sdxl), steps=3)
    report = proven(record)
    is_exact(report, record)
    assert 0 < report.integer_mac_share < report.integer_mac_share_of_quantizable


def test_attention_in_bfloat16_is_reported_and_changes_no_integer():
    record = random_record(tiny_conditional_denoiser(), steps=3)
    with NativeRunner(record, threads=1, attention="bf16", finite_check=False) as runner:
        report = proof_of(record, runner, QUICK)
    assert report.failures == ()
    assert report.max_code_difference == report.max_accumulator_difference == 0
    assert report.attention.precision == "bf16"
    assert report.attention.operations > 0
    assert 0 < report.attention.rms_error < 2**-7
    assert report.attention.largest_error < 2**-6
    assert report.attention.mac_share == report.macs.attention / report.macs.of_all
    assert "attention in bf16" in report.runtime
    assert proven(record).attention is None


def test_attention_in_bfloat16_may_not_hide_a_wrong_scale(monkeypatch):
    record = random_record(tiny_conditional_denoiser(), steps=3)

    def wrong(bound, op, index):
        args = struct_of(bound, op, index)
        if op.kind == "attention":
            args.scale *= 0.5
        return args

    monkeypatch.setattr("dq_deploy.native.cpu.executor.struct_of", wrong)
    with NativeRunner(copy.deepcopy(record), threads=1, attention="bf16", finite_check=False) as runner:
        report = proof_of(record, runner, QUICK)
    assert any("a float operation between them is wrong" in text for text in report.failures)


def test_attention_on_images_and_classes_is_exact():
    record = random_record(tiny_denoiser(classes=3, downsample_padding=0), steps=3)
    is_exact(proven(record), record)


def test_split_layers_are_compared_part_by_part(record):
    whole = record.layers[OTHER].parts[0]
    cut = len(whole.pre) // 3
    halves = tuple(
        dataclasses.replace(
            whole,
            pre=whole.pre[piece],
            w_code=np.ascontiguousarray(whole.w_code[:, :, piece]),
            scale=whole.scale * factor,
        )
        for piece, factor in ((slice(0, cut), np.float32(1)), (slice(cut, None), np.float32(1.5)))
    )
    split = with_layer(record, OTHER, parts=halves)
    report = proven(split)
    is_exact(report, split)
    assert len(next(layer for layer in report.layers if layer.name == OTHER).executed) == 2


def test_one_changed_weight_is_found(record):
    codes = record.layers[LAYER].parts[0].w_code.copy()
    codes[0, -1, -1, -1, -1] += -1 if codes[0, -1, -1, -1, -1] > 0 else 1
    report = proven(record, with_part(record, LAYER, w_code=codes))
    assert differing(report) == {LAYER}
    assert "accumulator at" in report.failures[0]
    assert report.max_code_difference == 0
    assert report.max_accumulator_difference > 0


def test_a_packed_weight_changed_in_memory_is_found(record):
    def damage(runner):
        packed = runner.executor.constants[LAYER, 0].packed
        at = len(packed) // 2
        packed[at] ^= 0x11

    assert LAYER in differing(proven(record, damage=damage))


def test_a_zero_point_off_by_one_at_one_step_is_found(record):
    zero = record.layers[LAYER].parts[0].zero_point.copy()
    zero[2] += 1
    report = proven(record, with_part(record, LAYER, zero_point=zero))
    assert differing(report) == {LAYER}
    assert "step 2 " in report.failures[0]


def test_a_scale_that_touches_the_output_alone_is_found(record):
    def damage(runner):
        runner.executor.constants[LAYER, 0].weight_scale[1] *= np.float32(1 + 2**-23)

    report = proven(record, damage=damage)
    assert differing(report) == {LAYER}
    assert "output at (1," in report.failures[0]
    assert report.max_accumulator_difference == 0


def test_a_bias_of_another_layer_is_found(record):
    def damage(runner):
        runner.executor.constants[LAYER, 0].bias[:] = 0

    assert differing(proven(record, damage=damage)) == {LAYER}


def test_a_residual_that_is_left_out_is_found(record):
    """Nothing inside the layer differs: only what its kernel adds behind it."""

    def damage(runner):
        for batch in (1, 2, 4):
            plan = runner.executor.plan(batch)
            for index, op in enumerate(plan.program.ops):
                if op.attributes.get("layer") == LAYER:
                    plan.structs[index].epilogue.residual = None

    report = proven(record, damage=damage)
    assert LAYER in differing(report)
    assert "sum with what is added to it" in report.failures[0]
    assert report.max_accumulator_difference == 0


@pytest.mark.parametrize("wrong", [False, True], ids=["as it is", "the activation left out"])
def test_a_layer_that_writes_codes_of_its_result_is_proven_by_the_call_that_runs(wrong):
    record = random_record(tiny_conditional_denoiser(), steps=3)

    def damage(runner):
        assert runner.executor.plan(1).at_once
        for batch in (1, 2, 4) if wrong else ():
            for _, args in runner.executor.plan(batch).at_once.values():
                args.gated = 0

    report = proven(record, damage=damage, isa="avx2" if "avx2" in known_isas() else "portable")
    readers = {name for name in differing(report) if ".ff.net.2" in name}
    assert report.exact is not wrong
    assert bool(readers) is wrong


def test_a_float_operation_between_layers_is_found(record):
    def damage(runner):
        for batch in (1, 2):
            plan = runner.executor.plan(batch)
            index = next(i for i, op in enumerate(plan.program.ops) if op.kind == "group_norm_silu_quantize")
            plan.structs[index].eps = 0.5

    report = proven(record, damage=damage)
    assert any("a float operation between them is wrong" in text for text in report.failures)
    assert report.max_code_difference == report.max_accumulator_difference == 0


def test_a_step_edge_moved_by_one_float_is_found(record):
    edges = record.step_edges.copy()
    edges[1] = np.nextafter(edges[1], np.float32(np.inf))
    report = proven(record, dataclasses.replace(record, step_edges=edges))
    assert "bucket 1 in the engine, expected 2" in report.failures[0]
    assert report.max_code_difference == 0


def test_a_batch_that_minds_its_neighbours_is_found(record):
    def damage(runner):
        plan = runner.executor.plan(1)
        index = next(i for i, op in enumerate(plan.program.ops) if op.attributes.get("layer") == LAYER)
        plan.structs[index].epilogue.bias = None

    report = proven(record, damage=damage)
    assert not report.batch_equals_single
    assert any(f"first at the output of layer {LAYER}" in text for text in report.failures)


def test_a_layer_no_kernel_takes_is_integer_in_numpy_and_named(record):
    part = record.layers[LAYER].parts[0]
    wide = with_part(record, LAYER, zero_point=part.zero_point - 400)
    report = proven(wide)
    found = next(layer for layer in report.layers if layer.name == LAYER)
    assert report.failures == ()
    assert found.status == "exact"
    assert found.integer
    assert found.executed == ("reference",)
    assert "padding needs 0..255" in found.reason
    assert any(
        f"1 layers are multiplied in integers by numpy, for no kernel takes them: {LAYER}" in n for n in report.notes
    )


@pytest.mark.parametrize(("pairs", "safe"), [(8, True), (9, False)])
def test_sums_in_int16_are_held_against_the_weights(record, pairs, safe):
    layer = record.layers[LAYER]
    form = LayerForm(kernel="int_conv2d avx2", form="in words nobody reads", reason="", memory_bits=4, pairs=pairs)
    assert (kernel_of(form, layer, 0).saturation == "") is safe
    assert 2 * 8 * 255 * 8 <= PAIR_LIMIT < 2 * 9 * 255 * 8


def test_the_margin_is_measured_against_the_float_model(record, tmp_path):
    save_record(record, tmp_path / "model.pt")
    report = verify(record, tmp_path / "model.pt", model=tiny_denoiser(**PLAIN), threads=1, steps=2, inputs=1)
    assert report.output_margin_db == min(step.margin_db for step in report.output_steps) >= 20
    assert "simulation against the float model" in page_of_report(report)


def test_the_command_needs_no_second_name(record, tmp_path):
    save_record(record, tmp_path / "model.safetensors")
    done = command(
        "verify", "--engine", tmp_path / "model.safetensors", "--exact", "--require-integer", 0.95, "--threads", 1,
        "--steps-checked", 2, "--inputs", 1, "--json", tmp_path / "v.json", "--html", tmp_path / "v.html",
    )  # fmt: skip
    assert done.code == 0, done.err
    values = json.loads((tmp_path / "v.json").read_text())
    assert values["exact"] is True
    assert values["target"] == "native"
    assert f"{known_isas()[-1]}, 1 threads" in values["runtime"]
    assert "int_conv2d" in (tmp_path / "v.html").read_text()
    assert "every layer compared, no difference" in done.out


def test_a_share_that_is_not_reached_exits_3(record, tmp_path):
    save_record(record, tmp_path / "model.pt")
    quick = ("--steps-checked", 1, "--inputs", 1, "--threads", 1)
    done = command("verify", "--engine", tmp_path / "model.pt", "--require-integer", 1, *quick)
    assert done.code == 3
    assert "required 1" in done.err


def test_another_record_is_one_line_and_exit_2(record, tmp_path):
    save_record(record, tmp_path / "model.pt")
    save_record(random_record(tiny_denoiser(**PLAIN), steps=4, seed=1), tmp_path / "other.pt")
    done = command("verify", "--ckpt", tmp_path / "other.pt", "--engine", tmp_path / "model.pt", "--exact")
    assert done.code == 2
    assert "is the record" in done.err
    assert done.err.count("\n") == 1


def test_an_unknown_instruction_set_is_one_line(record, tmp_path):
    save_record(record, tmp_path / "model.pt")
    done = command("verify", "--engine", tmp_path / "model.pt", "--isa", "avx9")
    assert done.code == 2
    assert "expected one of portable" in done.err
    assert done.err.count("\n") == 1
    with pytest.raises(OptionError, match="only the native engine"):
        verify(record, "unet.onnx", isa="avx2")


@pytest.mark.parametrize("more", [(), ("--isa", "all")])
def test_missing_kernels_are_one_line(record, tmp_path, monkeypatch, more):
    from dq_kernels.cpu import library

    save_record(record, tmp_path / "model.pt")
    monkeypatch.setenv("DQ_KERNELS_LIBRARY", str(tmp_path / "none.so"))
    library.library.cache_clear()
    try:
        done = command("verify", "--engine", tmp_path / "model.pt", *more)
    finally:
        monkeypatch.undo()
        library.library.cache_clear()
    assert done.code == 2
    assert "the CPU kernels are not built" in done.err
    assert done.err.count("\n") == 1
