"""A pipe or a device in a model file's place is refused at once: it would be read to its end and then waited for."""

from __future__ import annotations

import os

import pytest

from tests.cli.running import command

READ = ("model.pt", "model.safetensors", "model.onnx", "model.dqn", "model.plan")


@pytest.mark.parametrize("name", READ)
def test_a_pipe_is_refused(name, tmp_path):
    pipe = tmp_path / name
    os.mkfifo(pipe)
    for arguments in (("bench", "--engine", pipe), ("info", pipe), ("sample", "--engine", pipe, "--out", "x.png")):
        done = command(*arguments)
        assert done.code == 2
        assert f"{pipe} is a pipe or a device, expected a file" in done.err


@pytest.mark.parametrize("name", READ[:2])
def test_a_pipe_in_a_records_place_is_refused(name, tmp_path):
    pipe = tmp_path / name
    os.mkfifo(pipe)
    done = command("export", "--ckpt", pipe, "--out", tmp_path / "x.onnx")
    assert (done.code, "is a pipe or a device" in done.err) == (2, True)
