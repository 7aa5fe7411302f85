"""Weight-only layers and float ranges: schema version 2, written only where there are any."""

from __future__ import annotations

import dataclasses
import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from dq_deploy.errors import RecordError
from dq_deploy.record import Record, WeightOnlyLayer, content_sha256, load_record, save_record
from dq_deploy.record.files.arrays import arrays_from_record, header_text, record_from_arrays
from dq_deploy.record.summary import summarize_record
from tests.record.conftest import make_weight_only
from tests.record.files.test_arrays import drop, put, replace, set_header, write_form

FORMS = ("pt", "safetensors")
FIELDS = ("name", "weight_bits", "block_size", "w_code", "scale", "bias")


def assert_same_layers(left, right):
    assert list(left) == list(right)
    for name, layer in left.items():
        for field in FIELDS:
            a, b = getattr(layer, field), getattr(right[name], field)
            np.testing.assert_array_equal(a, b)
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None)


@pytest.mark.parametrize("form", FORMS)
def test_both_come_back_as_they_were_and_give_the_same_bytes(record_v2, tmp_path, form):
    path, again = tmp_path / f"m.{form}", tmp_path / f"n.{form}"
    save_record(record_v2, path)
    loaded = load_record(path)
    assert_same_layers(loaded.weight_only, record_v2.weight_only)
    assert loaded.float_ranges == record_v2.float_ranges
    assert list(loaded.layers) == list(record_v2.layers)
    assert content_sha256(loaded) == content_sha256(record_v2)
    save_record(loaded, again)
    assert again.read_bytes() == path.read_bytes()


def test_version_two_is_written_only_where_it_is_needed(record, record_v2):
    def version(value):
        return json.loads(arrays_from_record(value)[0])["version"]

    assert version(record) == 1
    assert "weight_only" not in arrays_from_record(record)[0]
    assert version(record_v2) == 2
    assert version(dataclasses.replace(record_v2, weight_only={})) == 2
    assert version(dataclasses.replace(record_v2, float_ranges={})) == 2


def test_version_one_files_still_have_the_bytes_they_had(record, tmp_path):
    """Digests of the files that the release before version 2 wrote."""
    from dq_deploy.artifacts import sha256_of_file

    for form, digest in (("pt", "fc536c46c834ad9b"), ("safetensors", "a33f43079999ac71")):
        save_record(record, tmp_path / f"m.{form}")
        assert sha256_of_file(tmp_path / f"m.{form}")[:16] == digest
    assert content_sha256(record)[:16] == "a5be06d880a0d3d1"


def test_arrays_that_torch_is_not_given_a_copy_of_give_the_same_bytes(tmp_path):
    """Large arrays are written from where they lie, whatever their strides on axes of length 1."""
    weight = np.ones((1, 1 << 19), np.float32)
    odd = np.lib.stride_tricks.as_strided(weight, weight.shape, (0, 4))
    light = make_weight_only(np.random.default_rng(0), "a")
    digests = set()
    for value in (weight, odd, odd.copy()):
        frozen = value.view()
        frozen.flags.writeable = False
        one = np.ones(1, np.float32)
        record = Record(
            family="unet2d",
            layers={},
            timesteps=one,
            step_edges=one[1:],
            float_parameters={"w": frozen},
            model_config={},
            weight_only={"a": light},
        )
        save_record(record, tmp_path / "m.pt")
        digests.add((tmp_path / "m.pt").read_bytes())
    assert len(digests) == 1
    assert load_record(tmp_path / "m.pt").float_parameters["w"].shape == weight.shape


def test_a_record_may_have_weight_only_layers_alone(record_v2, tmp_path):
    alone = dataclasses.replace(record_v2, layers={})
    save_record(alone, tmp_path / "m.pt")
    loaded = load_record(tmp_path / "m.pt")
    assert not loaded.layers
    assert set(loaded.weight_only) == {"c.q", "c.k"}
    with pytest.raises(RecordError, match="no quantized layer"):
        dataclasses.replace(alone, weight_only={})


def test_the_summary_counts_them(record_v2):
    summary = summarize_record(record_v2)
    before = summarize_record(dataclasses.replace(record_v2, weight_only={}))
    assert summary["bits"]["W4A16"] == summary["bits"]["W6A16"] == 1
    assert [row["name"] for row in summary["weight_only"]] == ["c.q", "c.k"]
    assert summary["float_ranges"] == {"a": 0.0, "b.norm": 3.5}
    stored = 24 + 4 * 12 + 4 * 6 + 48 + 4 * 24
    assert (summary["size_mib"]["quantized"] - before["size_mib"]["quantized"]) * 2**20 == pytest.approx(stored)
    assert summary["content_sha256"] == content_sha256(record_v2)
    json.dumps(summary)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_valid_weight_only_layer_survives(tmp_path, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    block = data.draw(st.integers(1, 5))
    shape = (data.draw(st.integers(1, 5)), block * data.draw(st.integers(1, 4)))
    bits = data.draw(st.integers(2, 8))
    light = make_weight_only(rng, "l", shape, weight_bits=bits, block_size=block, bias=data.draw(st.booleans()))
    ranges = data.draw(
        st.dictionaries(
            st.text(st.characters(min_codepoint=33, max_codepoint=1000, exclude_categories=("C", "Z")), max_size=4),
            st.floats(0, allow_infinity=False),
            max_size=3,
        )
    )
    one = np.ones(1, np.float32)
    record = Record(
        family="unet2d",
        layers={},
        timesteps=one,
        step_edges=one[1:],
        float_parameters={},
        model_config={},
        weight_only={"l": light},
        float_ranges=ranges,
    )
    digests = set()
    for form in FORMS:
        save_record(record, tmp_path / f"m.{form}")
        loaded = load_record(tmp_path / f"m.{form}")
        assert_same_layers(loaded.weight_only, record.weight_only)
        assert loaded.float_ranges == ranges
        digests.add(content_sha256(loaded))
    assert digests == {content_sha256(record)}


def test_the_weight_is_code_times_scale_of_the_block():
    light = make_weight_only(np.random.default_rng(3), "l", (3, 8), block_size=4)
    expected = np.empty((3, 8), np.float32)
    for n in range(3):
        for k in range(8):
            expected[n, k] = np.float32(light.w_code[n, k]) * light.scale[n, k // 4]
    np.testing.assert_array_equal(light.weight(), expected)
    assert light.weight().dtype == np.float32


def set_light(name, key, value):
    def change(header, arrays):
        next(entry for entry in header["weight_only"] if entry["name"] == name).update({key: value})

    return change


Q, K = "weight_only/c.q", "weight_only/c.k"
BROKEN = {
    "nan scale": (put(f"{Q}/scale", (0, 0), np.nan), "layer c.q: scale holds nan"),
    "zero scale": (put(f"{Q}/scale", (0, 0), 0), "layer c.q: scale holds 0.0"),
    "wide code": (put(f"{K}/w_code", (0, 0), 32), r"layer c.k: w_code spans .*\[-32, 31\]"),
    "nan bias": (put(f"{Q}/bias", 0, np.nan), "layer c.q: bias"),
    "short bias": (replace(f"{Q}/bias", np.ones(2, np.float32)), "layer c.q: bias"),
    "short packed codes": (replace(f"{Q}/w_code", np.zeros(23, np.uint8)), "layer c.q: packed codes hold 23"),
    "code shape": (set_light("c.k", "shape", [8, 6]), "layer c.k: w_code has shape"),
    "code type": (replace(f"{K}/w_code", np.zeros((6, 8), np.int16)), "w_code is int16, expected int8"),
    "scale type": (replace(f"{Q}/scale", np.ones((6, 2))), "scale is float64"),
    "scale shape": (replace(f"{Q}/scale", np.ones((2, 6), np.float32)), "layer c.q: scale has shape"),
    "block": (set_light("c.q", "block_size", 3), "layer c.q: block_size is 3, expected a divisor of the 8"),
    "no block": (set_light("c.q", "block_size", 0), "layer c.q: block_size is 0"),
    "boolean block": (set_light("c.q", "block_size", True), "layer c.q: block_size is True"),
    "bits": (set_light("c.k", "weight_bits", 9), "layer c.k: weight_bits is 9"),
    "huge shape": (set_light("c.q", "shape", [2**31 - 1, 2**31 - 1]), "layer c.q: packed codes hold 24 bytes"),
    "empty shape": (set_light("c.q", "shape", [0, 8]), "layer c.q: shape is"),
    "missing key": (lambda h, a: h["weight_only"][0].pop("shape"), "layer c.q lacks shape"),
    "unknown key": (set_light("c.q", "surprise", 1), "layer c.q has the unknown surprise"),
    "missing tensor": (drop(f"{Q}/scale"), "weight_only/c.q/scale is missing"),
    "unknown tensor": (replace(f"{K}/bias", np.ones(6, np.float32)), "weight_only/c.k/bias is unknown"),
    "twice": (lambda h, a: h["weight_only"].append(dict(h["weight_only"][0])), "weight_only lists c.q twice"),
    "slash": (set_light("c.q", "name", "c/q"), "missing|'/'"),
    "entries": (set_header("weight_only", {}), "weight_only is dict, expected list"),
    "entry": (set_header("weight_only", [1]), "entry is int"),
    "nothing new": (
        lambda h, a: (h.update(weight_only=[], float_ranges={}), [a.pop(k) for k in list(a) if "weight_only" in k]),
        "expected schema version 1",
    ),
    "lacks a key": (lambda h, a: h.pop("float_ranges"), "header lacks float_ranges"),
    "version 1 with keys of 2": (set_header("version", 1), "header has the unknown float_ranges, weight_only"),
    "range type": (set_header("float_ranges", {"a": "x"}), "float_ranges of 'a' is str, expected float"),
    "negative range": (set_header("float_ranges", {"a": -1.0}), "float_ranges of 'a' is -1.0"),
    "line break in a range": (set_header("float_ranges", {"a\nb": 1.0}), r"float_ranges of 'a\\nb'"),
    "ranges": (set_header("float_ranges", []), "float_ranges is list, expected dict"),
    "float and weight-only": (
        lambda h, a: (h["float_parameters"].append("c.q.bias"), a.update({"float/c.q.bias": np.ones(6, np.float32)})),
        "c.q.bias is stored as float and in layer c.q",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_invariant_is_named(record_v2, tmp_path, form, what):
    change, message = BROKEN[what]
    text, arrays = arrays_from_record(record_v2)
    header, arrays = json.loads(text), {key: value.copy() for key, value in arrays.items()}
    change(header, arrays)
    path = tmp_path / f"m.{form}"
    write_form(path, header_text(header), arrays)
    with pytest.raises(RecordError, match=message) as caught:
        load_record(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_infinity_in_a_header_is_refused(record_v2):
    text, arrays = arrays_from_record(record_v2)
    with pytest.raises(RecordError, match=r"float_ranges of 'b\.norm' is inf"):
        record_from_arrays(text.replace("3.5", "Infinity"), arrays)


def test_one_name_cannot_be_integer_and_weight_only(record_v2):
    light = make_weight_only(np.random.default_rng(0), "a.linear")
    with pytest.raises(RecordError, match=r"a\.linear is an integer layer and a weight-only one"):
        dataclasses.replace(record_v2, weight_only={"a.linear": light})
    with pytest.raises(RecordError, match="stored as 'x'"):
        dataclasses.replace(record_v2, weight_only={"x": light})


def test_a_weight_zero_point_is_refused_where_no_int32_sum_holds_it(record):
    layer = record.layers["a.conv"]
    part = layer.parts[0]
    for zero in (128, -130, 40_000, 2**31 - 1, -(2**31)):
        table = part.w_zero_point.copy()
        table[1, 2] = zero
        moved = dataclasses.replace(part, w_zero_point=table)
        q = part.w_code[1, 2].astype(np.int64) - zero
        assert not moved.fits_int8
        if abs(zero) < 2**20:
            np.testing.assert_array_equal(moved.q_weight(1)[2], q)
            dataclasses.replace(layer, parts=(moved,))
        else:
            with pytest.raises(RecordError, match=r"layer a.conv: K \* max\|c\| \* max\|w_q\|"):
                dataclasses.replace(layer, parts=(moved,))
    table = part.w_zero_point.copy()
    table[0, 1] = 100
    shifted = dataclasses.replace(part, w_zero_point=table)
    q = np.stack([shifted.q_weight(g) for g in range(2)])
    assert shifted.q_weight_span == (q.min(), q.max())


def test_a_weight_only_layer_of_other_types_is_refused():
    good = make_weight_only(np.random.default_rng(0), "l")
    for changes, message in (
        ({"w_code": good.w_code.astype(np.int16)}, "w_code is int16"),
        ({"w_code": good.w_code[0]}, r"expected \[C_out, C_in\]"),
        ({"name": ""}, "name is empty"),
        ({"scale": good.scale.astype(np.float64)}, "scale is float64"),
    ):
        with pytest.raises(RecordError, match=message):
            dataclasses.replace(good, **changes)
    assert isinstance(good, WeightOnlyLayer)
