"""Every invariant of a record is checked when a file is loaded, and the message names the layer."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save as save_tensors

from dq_deploy.errors import RecordError
from dq_deploy.record import load_record
from dq_deploy.record.files.arrays import arrays_from_record, header_text

HEADER = "dq_deploy.record"
FORMS = ("pt", "safetensors")


def write_form(path, header, arrays):
    """Write any content in the form of the path, valid or not."""
    if path.suffix == ".pt":
        torch.save({HEADER: header, **{k: torch.from_numpy(np.array(v)) for k, v in arrays.items()}}, path)
    else:
        path.write_bytes(
            save_tensors({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata={HEADER: header})
        )


@pytest.fixture(params=FORMS)
def tampered(request, record, tmp_path):
    """Save the record after a change to its header and arrays; returns the path."""

    def save(change):
        text, arrays = arrays_from_record(record)
        header, arrays = json.loads(text), {key: value.copy() for key, value in arrays.items()}
        change(header, arrays)
        path = tmp_path / f"m.{request.param}"
        write_form(path, header_text(header), arrays)
        return path

    return save


def layer_of(header, name):
    return next(entry for entry in header["layers"] if entry["name"] == name)


def put(key, index, value):
    def change(header, arrays):
        arrays[key][index] = value

    return change


def replace(key, value):
    def change(header, arrays):
        arrays[key] = np.asarray(value)

    return change


def drop(key):
    return lambda header, arrays: arrays.pop(key)


def set_header(key, value):
    return lambda header, arrays: header.update({key: value})


def set_layer(name, key, value):
    return lambda header, arrays: layer_of(header, name).update({key: value})


CONV = "layer/a.conv/part0"
BROKEN = {
    "nan scale": (put(f"{CONV}/scale", 1, np.nan), "layer a.conv: part 0: scale holds nan"),
    "negative scale": (put(f"{CONV}/scale", 0, -1), "layer a.conv: part 0: scale holds -1.0"),
    "zero weight scale": (
        put(f"{CONV}/weight_scale", (0, 0), 0),
        "layer a.conv: part 0: weight_scale holds 0.0",
    ),
    "huge pre": (put(f"{CONV}/pre", 0, 2.0**61), "layer a.conv: part 0: pre holds"),
    "nan output scale": (put("layer/b.split/out_scale", 0, np.nan), "layer b.split: out_scale holds nan"),
    "output zero point": (put("layer/b.split/out_zero_point", 0, 256), "layer b.split: out_zero_point"),
    "nan bias": (put("layer/a.conv/bias", 0, np.inf), "layer a.conv: bias"),
    "nan float parameter": (put("float/norm.weight", 0, np.nan), "norm.weight holds NaN"),
    "wide code": (
        put("layer/b.grouped/part0/w_code", (0, 0, 0, 0, 0), 16),
        r"layer b.grouped: w_code spans .*\[-16, 15\]",
    ),
    "wide packed code": (
        put("layer/b.split/part0/w_code", 0, 0x0F ^ 0x08),
        r"layer b.split: w_code spans .*\[-4, 3\]",
    ),
    "weight zero point": (
        put(f"{CONV}/w_zero_point", (0, 0), 300),
        "layer a.conv: part 0: w_code - w_zero_point",
    ),
    "far zero point": (put(f"{CONV}/zero_point", 0, 2**30), "layer a.conv: zero_point is up to"),
    "weight set": (
        put(f"{CONV}/group_of_step", 0, 2),
        r"layer a.conv: part 0: group_of_step names weight sets outside 0\.\.1",
    ),
    "short scale table": (
        lambda h, a: a.update({f"{CONV}/scale": np.ones(2, np.float32), f"{CONV}/zero_point": np.ones(2, np.int32)}),
        r"layer a.conv: parts\[0\].scale has 2 entries, expected 1 or 3",
    ),
    "scale and zero point": (
        replace(f"{CONV}/zero_point", np.ones(2, np.int32)),
        "layer a.conv: part 0: zero_point",
    ),
    "short output table": (
        lambda h, a: a.update(
            {
                "layer/b.split/out_scale": np.ones(2, np.float32),
                "layer/b.split/out_zero_point": np.ones(2, np.int32),
            }
        ),
        "layer b.split: out_scale has 2 entries",
    ),
    "edges and timesteps": (
        replace("step_edges", np.array([1.0], np.float32)),
        "step_edges has 1 entries, expected 2",
    ),
    "edges not increasing": (
        replace("step_edges", np.array([5, 5], np.float32)),
        "step_edges is not strictly",
    ),
    "nan edge": (put("step_edges", 0, np.nan), "step_edges is float32"),
    "wrong scale type": (
        replace(f"{CONV}/scale", np.ones(3)),
        "a.conv/part0/scale is float64, expected float32",
    ),
    "wrong code type": (
        replace("layer/b.grouped/part0/w_code", np.zeros((1, 4, 2, 3, 3), np.int16)),
        "b.grouped/part0/w_code is int16, expected int8",
    ),
    "unpacked codes": (
        replace(f"{CONV}/w_code", np.zeros((2, 3, 3, 3, 3), np.int8)),
        "w_code is int8, expected uint8",
    ),
    "short packed codes": (
        replace(f"{CONV}/w_code", np.zeros(5, np.uint8)),
        "layer a.conv: part 0: packed codes hold 5",
    ),
    "wrong float type": (replace("float/norm.weight", np.ones(3)), "norm.weight is float64"),
    "code shape": (
        set_layer("b.grouped", "w_shapes", [[1, 4, 2, 3, 2]]),
        "layer b.grouped: w_code has shape",
    ),
    "missing tensor": (drop(f"{CONV}/pre"), "tensor layer/a.conv/part0/pre is missing"),
    "missing bias": (drop("layer/a.conv/bias"), "tensor layer/a.conv/bias is missing"),
    "missing float parameter": (drop("float/half"), "tensor float/half is missing"),
    "unknown tensor": (
        replace("layer/a.conv/extra", np.ones(1, np.float32)),
        "tensor layer/a.conv/extra is unknown",
    ),
    "unknown key": (set_header("surprise", 1), "header has the unknown surprise"),
    "missing key": (lambda h, a: h.pop("family"), "header lacks family"),
    "unknown layer key": (set_layer("a.conv", "surprise", 1), "layer a.conv has the unknown surprise"),
    "missing layer key": (lambda h, a: layer_of(h, "a.conv").pop("stride"), "layer a.conv lacks stride"),
    "kind": (set_layer("a.conv", "kind", "conv3d"), "layer a.conv: kind is 'conv3d'"),
    "stride": (set_layer("a.conv", "stride", [0, 1]), "layer a.conv: stride and dilation"),
    "stride type": (set_layer("a.conv", "stride", [1.5, 1]), "layer a.conv: stride is"),
    "padding": (set_layer("a.conv", "padding", [1, 1, 1]), "layer a.conv: padding is"),
    "bits": (set_layer("a.conv", "activation_bits", 9), "layer a.conv: activation_bits is 9"),
    "weight bits": (
        set_layer("b.grouped", "weight_bits", 4),
        "b.grouped/part0/w_code is int8, expected uint8",
    ),
    "boolean bits": (set_layer("a.conv", "activation_bits", True), "layer a.conv: activation_bits is True"),
    "code range": (set_layer("a.conv", "q_max", 254), r"layer a.conv: codes 0\.\.254"),
    "groups": (set_layer("a.conv", "groups", 3), "layer a.conv"),
    "three parts": (set_layer("a.conv", "w_shapes", [[1, 1, 1]] * 3), "layer a.conv: w_shapes is"),
    "empty shape": (set_layer("a.conv", "w_shapes", [[2, 0, 3, 3, 3]]), "layer a.conv: w_shapes holds"),
    "layer twice": (lambda h, a: h["layers"].append(dict(h["layers"][0])), "layers lists a.conv twice"),
    "float and quantized": (
        lambda h, a: (
            h["float_parameters"].append("a.conv.weight"),
            a.update({"float/a.conv.weight": np.ones(1, np.float32)}),
        ),
        "a.conv.weight is stored as float and in layer a.conv",
    ),
    "no layers": (set_header("layers", []), "unknown"),
    "layers type": (set_header("layers", {}), "layers is dict, expected list"),
    "newer version": (set_header("version", 5), "schema version is 5, this dq_deploy reads up to 4; upgrade"),
    "no version": (set_header("version", "1"), "schema version is '1'"),
    "format": (set_header("format", "other"), "names no format"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_invariant_is_named_with_its_layer(tampered, what):
    change, message = BROKEN[what]
    path = tampered(change)
    with pytest.raises(RecordError, match=message) as caught:
        load_record(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_the_untampered_record_loads(tampered):
    load_record(tampered(lambda header, arrays: None))
