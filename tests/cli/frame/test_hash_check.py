"""Every command that opens an engine refuses a file that is not what was written, in one line, unless told not to."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import onnx
import pytest

from tests.cli.running import command


@pytest.fixture
def engine(tiny_engine, tmp_path):
    """The tiny engine with one byte more, which no reader looks at, and its manifest beside it."""
    path = tmp_path / "unet.onnx"
    path.write_bytes(tiny_engine.read_bytes() + b"\xa0\x06\x01")
    shutil.copy(tiny_engine.with_name(tiny_engine.name + ".json"), tmp_path / "unet.onnx.json")
    return path


@pytest.fixture
def record(tiny_record_path, tmp_path):
    """The tiny record in the other form, with one bit of its last tensor flipped."""
    from dq_deploy.record import Fold, load_record, save_record

    path, whole = tmp_path / "model.safetensors", load_record(tiny_record_path)
    layer = whole.layers["conv_out"]  # a record with folds is of the schema version that has a hash
    fold = Fold(producer="conv_norm_out", factor=np.ones(layer.in_channels, np.float32))
    layers = {**whole.layers, "conv_out": dataclasses.replace(layer, folded=fold)}
    save_record(dataclasses.replace(whole, layers=layers), path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    return path


def arguments(name, path, tmp_path):
    return {
        "info": (path,),
        "bench": ("--engine", path, "--batch", "1", "--rounds", "1", "--runs", "1", "--warmup", "1", "--threads", "1"),
        "sample": ("--engine", path, "--labels", "0", "--steps", "1", "--threads", "1", "--out", tmp_path / "x.png"),
        "build": ("--onnx", path, "--out", tmp_path / "x.plan"),
    }[name]


def one_line(done) -> str:
    assert done.code == 2
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert lines == done.err.splitlines()[-1:]
    assert len(lines[0]) <= 300
    return lines[0]


@pytest.mark.parametrize("name", ["info", "bench", "sample", "build"])
def test_a_damaged_engine_is_refused(name, engine, tmp_path):
    text = one_line(command(name, *arguments(name, engine, tmp_path)))
    assert f"{engine} is not what was written: its content hash is " in text
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("name", ["info", "bench", "sample"])
def test_it_runs_where_the_check_is_left_out(name, engine, tmp_path):
    done = command(name, *arguments(name, engine, tmp_path), "--no-hash-check")
    assert done.code == 0, done.err


def test_a_build_without_the_check_gets_as_far_as_the_target(engine, tmp_path):
    text = one_line(command("build", *arguments("build", engine, tmp_path), "--no-hash-check"))
    assert "was exported for onnxruntime" in text


@pytest.mark.parametrize("name", ["info", "sample"])
def test_a_damaged_record_is_refused_unless_told_not_to(name, record, tmp_path):
    assert str(record) in one_line(command(name, *arguments(name, record, tmp_path)))
    done = command(name, *arguments(name, record, tmp_path), "--no-hash-check")
    assert done.code == 0, done.err


@pytest.mark.parametrize("name", ["info", "bench", "sample", "build", "verify"])
def test_an_engine_moved_without_its_data_says_what_to_copy(name, tiny_engine, tiny_record_path, tmp_path):
    path = tmp_path / "unet.onnx"
    onnx.save(onnx.load(tiny_engine), path, save_as_external_data=True, location="unet.onnx.data", size_threshold=64)
    (tmp_path / "unet.onnx.data").unlink()
    given = ("--ckpt", tiny_record_path, "--engine", path) if name == "verify" else arguments(name, path, tmp_path)
    text = one_line(command(name, *given))
    assert f"copy unet.onnx.data into {tmp_path} too" in text


def test_the_record_that_a_plan_is_held_against_is_read_without_the_check_where_asked(record, tmp_path):
    from dq_deploy.cli.verify import _record_of
    from dq_deploy.errors import DqError

    plan = tmp_path / "unet.plan"
    with pytest.raises(DqError, match="is not what was written"):
        _record_of(plan, record, {}, hash_check=True)
    assert _record_of(plan, record, {}, hash_check=False) is not None
