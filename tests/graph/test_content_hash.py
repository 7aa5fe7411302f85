"""An ONNX file is opened only as it was written: a flipped bit, another data file or a missing one is one line."""

from __future__ import annotations

import json
import os
import random
import shutil

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dq_deploy.errors import DqError, FileProblemError
from dq_deploy.graph.content_hash import content_sha256
from dq_deploy.graph.onnx_file import MANIFEST_KEY, manifest_path, read_manifest, write_onnx
from dq_deploy.manifest.values import EngineManifest
from dq_deploy.open_engine import open_engine

FLOAT = ir.TensorType(ir.DataType.FLOAT)
MANIFEST = {
    "format": MANIFEST_KEY,
    "version": 1,
    "target": "onnxruntime",
    "mode": "exact",
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["B", 64]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["B", 64]}],
    "layers": [],
    "timesteps": [0.0],
    "step_edges": [],
    "model_config": {},
    "scheduler_config": None,
}
FEEDS = {"x": np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)}


def written(path, *, external: bool, seed: int = 0):
    """A product with a weight of 64 x 64 as an engine file."""
    weight = np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32)
    x = ir.Value(name="x", type=FLOAT, shape=ir.Shape(["B", 64]))
    w = ir.Value(name="w", type=FLOAT, shape=ir.Shape([64, 64]), const_value=ir.tensor(weight, name="w"))
    node = ir.node("MatMul", [x, w])
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", FLOAT, ir.Shape(["B", 64])
    graph = ir.Graph([x], [y], nodes=[node], initializers=[w], opset_imports={"": 21}, name="one")
    write_onnx(
        ir.Model(graph, ir_version=10),
        path,
        EngineManifest.from_json(MANIFEST),
        external_above=0 if external else 1 << 20,
    )
    return path


@pytest.fixture(params=[False, True], ids=["inline", "external"])
def file(request, tmp_path):
    return written(tmp_path / "unet.onnx", external=request.param)


def data_of(path):
    return path.with_name(path.name + ".data")


def output(path, **options):
    with open_engine(path, threads=1, **options) as runner:
        return runner.run(FEEDS)["y"]


def refused(path, **options) -> str:
    with pytest.raises(FileProblemError) as caught:
        open_engine(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_hashes_are_of_what_was_written(file):
    inside = read_manifest(file, hash_check=True)
    beside = json.loads(manifest_path(file).read_text())
    assert inside.to_json() == {key: value for key, value in beside.items() if key != "onnx_sha256"}
    assert (inside.data_sha256 is None) == (not data_of(file).exists())
    model = onnx.load(file, load_external_data=False)
    assert content_sha256(file.read_bytes(), inside) == inside.content_sha256
    model.ClearField("metadata_props")
    assert content_sha256(model.SerializeToString(deterministic=True), inside) == inside.content_sha256


@pytest.mark.parametrize("beside", [True, False])
def test_a_flipped_bit_is_refused_or_changes_nothing(file, beside):
    want, chance = output(file), random.Random(3)
    if not beside:
        manifest_path(file).unlink()
    targets = [path for path in (file, data_of(file), manifest_path(file)) if path.exists()]
    for target in targets:
        whole = target.read_bytes()
        silent = 0
        for _ in range(30):
            data = bytearray(whole)
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            target.write_bytes(data)
            try:
                np.testing.assert_array_equal(output(file), want)
                silent += 1
            except DqError:
                continue
        target.write_bytes(whole)
        # with the manifest beside it the file is known byte for byte; of that manifest only its hash is looked at, and
        # of the manifest inside what it means
        assert silent == 0 or (target == file and not beside) or target == manifest_path(file)
    np.testing.assert_array_equal(output(file), want)


def test_the_line_names_the_file_and_both_hashes(file):
    wanted = json.loads(manifest_path(file).read_text())["onnx_sha256"]
    file.write_bytes(file.read_bytes() + b"\xa0\x06\x01")  # a field nobody knows: another content, the same graph
    text = refused(file)
    assert f"{file} is not what was written: its content hash is " in text
    assert wanted[:12] in text
    assert "export it again" in text
    np.testing.assert_array_equal(output(file, hash_check=False), output(written(file, external=False)))


def test_a_file_of_an_earlier_version_is_checked_by_what_it_has(file):
    model = onnx.load(file, load_external_data=False)
    model.ClearField("metadata_props")
    model.metadata_props.add(key=MANIFEST_KEY, value=json.dumps(MANIFEST))
    file.write_bytes(model.SerializeToString())
    refused(file)
    manifest_path(file).unlink()
    assert output(file).shape == (2, 64)


def test_a_renamed_copy_without_its_manifest_is_checked_too(file):
    copy = file.with_name("copy.onnx")
    shutil.copy(file, copy)
    assert output(copy).shape == (2, 64)
    data = bytearray(copy.read_bytes())
    data[data.index(b"timesteps")] ^= 1
    copy.write_bytes(data)
    refused(copy)


def test_a_manifest_beside_that_is_none_is_refused(file):
    whole = manifest_path(file).read_text()
    for text in (whole[:-20], whole.replace("onnx_sha256", "onnx_sha257"), "[]", "\ufffd"):
        manifest_path(file).write_text(text)
        assert manifest_path(file).name in refused(file)
    manifest_path(file).unlink()
    manifest_path(file).mkdir()
    assert manifest_path(file).name in refused(file)


def test_a_file_of_others_beside_any_json_opens_where_no_manifest_is_asked(file):
    model = onnx.load(file)
    model.ClearField("metadata_props")
    plain = file.with_name("plain.onnx")
    onnx.save(model, plain)
    plain.with_name("plain.onnx.json").write_text('{"of": "others"}')
    assert output(plain, require_manifest=False).shape == (2, 64)
    assert "no dq_deploy manifest" in refused(plain)


@pytest.mark.parametrize("check", [True, False])
def test_a_file_without_its_data_says_what_to_copy(tmp_path, check):
    file = written(tmp_path / "unet.onnx", external=True)
    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved" / "unet.onnx"
    shutil.copy(file, moved)
    for options in ({}, {"require_manifest": False}, {"engine": "openvino"}):
        text = refused(moved, hash_check=check, **options)
        assert "unet.onnx.data" in text
        assert f"copy unet.onnx.data into {moved.parent}" in text


def test_data_that_is_cut_off_of_another_export_a_folder_or_unreadable(tmp_path):
    file = written(tmp_path / "unet.onnx", external=True)
    data, whole = data_of(file), data_of(file).read_bytes()
    data.write_bytes(whole[:-100])
    for check in (True, False):
        assert "it is truncated" in refused(file, hash_check=check)
    other = written(tmp_path / "other.onnx", external=True, seed=1)
    data.write_bytes(data_of(other).read_bytes())
    assert f"{data} is not what was written" in refused(file)
    data.unlink()
    data.mkdir()
    assert "is a folder" in refused(file)
    data.rmdir()
    data.write_bytes(whole)
    if os.geteuid() != 0:  # root reads everything
        data.chmod(0)
        assert "cannot be read" in refused(file)
        data.chmod(0o600)
    assert output(file).shape == (2, 64)


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "", "a/../../b"])
def test_data_outside_the_folder_is_refused(tmp_path, location):
    file = written(tmp_path / "unet.onnx", external=True)
    model = onnx.load(file, load_external_data=False)
    next(entry for entry in model.graph.initializer[0].external_data if entry.key == "location").value = location
    file.write_bytes(model.SerializeToString())
    assert "expected the name of a file beside it" in refused(file, hash_check=False)


@pytest.mark.parametrize(("key", "value"), [("offset", "x"), ("offset", "-4"), ("length", "-1")])
def test_a_tensor_that_lies_nowhere_is_refused(tmp_path, key, value):
    file = written(tmp_path / "unet.onnx", external=True)
    model = onnx.load(file, load_external_data=False)
    next(entry for entry in model.graph.initializer[0].external_data if entry.key == key).value = value
    file.write_bytes(model.SerializeToString())
    assert "export it again" in refused(file, hash_check=False)
