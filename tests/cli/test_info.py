"""dq-info shows what a file is, and says in one line why it cannot."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dq_deploy.cli.frame import run
from dq_deploy.cli.info import info
from dq_deploy.record import content_sha256, save_record
from tests.tiny import random_record, tiny_denoiser

MANIFEST = {
    "format": "dq_deploy.manifest",
    "version": 1,
    "record_sha256": "ab" * 32,
    "target": "onnxruntime",
    "mode": "exact",
    "family": "unet2d",
    "inputs": [{"name": "sample", "dtype": "float32", "shape": ["B", 1, 8, 8]}],
    "outputs": [{"name": "output", "dtype": "float32", "shape": ["B", 1, 8, 8]}],
    "model_config": {},
    "scheduler_config": None,
    "timesteps": [0.0, 500.0],
    "step_edges": [250.0],
    "single_step_batch": False,
    "versions": {"onnx": "1.0"},
    "macs": {"of_all": 400, "of_quantizable": 350, "attention": 50, "layers": {"conv_in": 50, "conv_out": 300}},
    "layers": [
        {"name": "conv_in", "kind": "conv2d", "integer": False, "form": "float", "reason": "kept float", "parts": []},
        {"name": "conv_out", "kind": "conv2d", "integer": True, "form": "u8u8", "reason": "", "parts": []},
    ],
}


@pytest.fixture(scope="module")
def record():
    return random_record(tiny_denoiser(classes=3))


def call(capsys, *arguments):
    """Exit code, stdout and stderr of one command."""
    with pytest.raises(SystemExit) as stop:
        run(info, [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def write_onnx(path, manifest):
    """The smallest ONNX model, with a manifest or without."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(graph)
    if manifest is not None:
        helper.set_model_props(model, {"dq_deploy.manifest": manifest})
    onnx.save(model, path)


@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_a_record_is_shown_with_its_layers_and_sizes(record, tmp_path, capsys, form):
    path = tmp_path / f"m.{form}"
    noted = dataclasses.replace(record.layers["conv_out"], fold="SiLU in between")
    record = dataclasses.replace(record, layers={**record.layers, "conv_out": noted})
    save_record(record, path)
    code, out, err = call(capsys, path, "--json", tmp_path / "i.json")
    assert (code, err) == (0, "")
    for text in ("unet2d (UNet2DModel)", "W4A8", "conv_in", "8x1x3x3", "DDPMScheduler", "fold 1: SiLU in between"):
        assert text in out
    summary = json.loads((tmp_path / "i.json").read_text())
    assert summary["content_sha256"] == content_sha256(record)
    assert [row["name"] for row in summary["layers"]] == list(record.layers)
    assert summary["steps"] == len(summary["timesteps"]) == 6
    weights = sum(np.prod(row["shape"]) for row in summary["layers"])
    biases = sum(row["shape"][0] for row in summary["layers"])
    assert summary["size_mib"]["quantized_as_float32"] * 2**20 >= 4 * weights
    assert summary["size_mib"]["quantized_as_float32"] * 2**20 <= 4 * (weights + biases)
    assert weights / 2 < summary["size_mib"]["quantized"] * 2**20
    assert summary["file_mib"] * 2**20 == path.stat().st_size


def test_an_engine_file_is_shown_with_what_it_declares(tmp_path, capsys):
    write_onnx(tmp_path / "u.onnx", json.dumps(MANIFEST))
    code, out, err = call(capsys, tmp_path / "u.onnx", "--json", tmp_path / "i.json")
    assert (code, err) == (0, "")
    for text in ("onnxruntime, mode exact", "ab" * 32, "1 of 2", "75.00 %", "kept float", "u8u8"):
        assert text in out
    summary = json.loads((tmp_path / "i.json").read_text())
    assert summary["declared_integer_mac_share"] == 0.75
    assert summary["manifest"] == MANIFEST


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "no dq_deploy manifest"),
        ("{", "not JSON"),
        ("[]", "not of this project"),
        (json.dumps({**MANIFEST, "version": 2}), "version 2"),
        (json.dumps({**MANIFEST, "layers": [{}]}), "incomplete"),
        (json.dumps({k: v for k, v in MANIFEST.items() if k != "macs"}), "incomplete"),
    ],
)
def test_an_engine_file_that_is_not_ours_is_one_line(tmp_path, capsys, manifest, message):
    write_onnx(tmp_path / "u.onnx", manifest)
    code, out, err = call(capsys, tmp_path / "u.onnx")
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors", "u.onnx", "notes.txt"])
def test_missing_and_random_files_are_one_line(tmp_path, capsys, name):
    for content in (None, b"", b"noise" * 100):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        code, out, err = call(capsys, tmp_path / name)
        assert (code, out) == (2, "")
        assert name in err
        assert err.count("\n") == 1


def test_an_unwritable_json_is_refused_before_anything_is_shown(record, tmp_path, capsys):
    save_record(record, tmp_path / "m.pt")
    code, out, err = call(capsys, tmp_path / "m.pt", "--json", tmp_path / "none" / "i.json")
    assert (code, out) == (2, "")
    assert "does not exist" in err


def test_the_command_needs_neither_torch_nor_an_engine(record, tmp_path):
    save_record(record, tmp_path / "m.pt")
    code = (
        "import sys\nfrom dq_deploy.cli.info import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        "assert not {'torch', 'onnxruntime', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, "m.pt"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
