"""`dq-export` writes an engine and says what is in it, or says in one line why not."""

from __future__ import annotations

import json

import onnx
import pytest

from tests.cli.running import command


def test_an_export_can_be_loaded_and_described(tiny_record_path, tmp_path):
    out, summary = tmp_path / "unet.onnx", tmp_path / "export.json"
    done = command("export", "--ckpt", tiny_record_path, "--out", out, "--json", summary)
    assert done.code == 0, done.err
    onnx.checker.check_model(str(out))
    values = json.loads(summary.read_text())
    assert values["integer_layers"] == values["layers"] > 10
    assert 0.5 < values["declared_integer_mac_share"] <= 1
    assert sum(values["forms"].values()) == values["layers"]
    assert "integer layers" in done.out


def test_an_export_for_tensorrt_names_its_forms_and_what_patches_cost(tiny_record_path, tmp_path):
    out, summary = tmp_path / "unet.onnx", tmp_path / "export.json"
    done = command("export", "--ckpt", tiny_record_path, "--out", out, "--target", "tensorrt-rtx", "--json", summary)
    assert done.code == 0, done.err
    onnx.checker.check_model(str(out))
    values = json.loads(summary.read_text())
    assert values["options"] == {"target": "tensorrt-rtx", "mode": "exact", "float_type": "float16", "conv": "gemm"}
    assert values["im2col_bytes"] > values["largest_im2col_bytes"] > 0
    assert any("patches" in form for form in values["forms"])
    assert "int8 patches of one sample" in done.out
    assert values["float_pads"] > 0  # eight bits, and a zero point for each step
    assert "convolutions padded in float32" in done.out
    assert "dq-build --onnx" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "tpu"], "expected one of onnxruntime, openvino"),
        (["--mode", "quick"], "expected one of exact, fast"),
        (["--target", "openvino", "--mode", "fast"], "expected one of exact"),
        (["--float-type", "float16"], "expected one of float32 for target onnxruntime"),
        (["--conv", "gemm"], "it can be given for tensorrt (native), tensorrt-rtx (gemm, native)"),
        (["--target", "tensorrt", "--conv", "gemm"], "conv is 'gemm' for target tensorrt"),
        (["--target", "tensorrt-rtx", "--float-type", "float8"], "expected one of float16, bfloat16, float32"),
        (["--target", "tensorrt-rtx", "--mode", "fast"], "expected one of exact"),
        (["--out", "unet.plan"], "ends in .onnx"),
        (["--out", "missing/unet.onnx"], "does not exist"),
        (["--ckpt", "missing.pt"], "missing.pt"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, message, tiny_record_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"--ckpt": str(tiny_record_path), "--out": "unet.onnx"}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    done = command("export", *(word for pair in given.items() for word in pair))
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
