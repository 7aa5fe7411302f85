"""Outputs of a command are checked and held before any work, whatever their names stand for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from dq_deploy import save_record
from dq_deploy.artifacts import hold_folder, hold_output
from dq_deploy.cli.frame.outputs import check_outputs, held_outputs
from dq_deploy.errors import FileProblemError, OptionError
from tests.cli.running import command
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser


@pytest.fixture
def record_path(tmp_path):
    save_record(random_record(tiny_denoiser(**ONE_LEVEL)), tmp_path / "m.pt")
    return tmp_path / "m.pt"


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_second_name_of_an_input_is_the_input(tmp_path):
    (tmp_path / "m.pt").write_text("x")
    os.link(tmp_path / "m.pt", tmp_path / "hard")
    (tmp_path / "soft").symlink_to("m.pt")
    for name in ("m.pt", "hard", "soft"):
        with pytest.raises(OptionError, match=f"output .*{name} would replace a file that is read"):
            check_outputs(tmp_path / name, inputs=(tmp_path / "m.pt",))
    with pytest.raises(OptionError, match="two outputs"):
        check_outputs(tmp_path / "hard", tmp_path / "soft")
    check_outputs(tmp_path / "other", inputs=(tmp_path / "m.pt",))


def test_devices_may_be_named_twice_and_read_too(tmp_path):
    from pathlib import Path

    null = Path(os.devnull)
    check_outputs(null, null, inputs=(null,))


def test_the_scheduler_beside_a_denoisers_folder_is_no_output(tmp_path):
    for name in ("unet", "scheduler"):
        (tmp_path / name).mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text("{}")
    with pytest.raises(OptionError, match="would replace"):
        check_outputs(file, inputs=(tmp_path / "unet",))


def test_outputs_are_held_inside_a_command_only(tmp_path):
    path = tmp_path / "a"
    with held_outputs():
        check_outputs(path)
        with pytest.raises(FileProblemError, match="another run"), hold_output(path):
            pass
        (tmp_path / "link").symlink_to("a")
        with pytest.raises(FileProblemError, match="another run"), hold_output(tmp_path / "link"):
            pass
    assert names_in(tmp_path) == ["link"]
    check_outputs(path)
    assert names_in(tmp_path) == ["link"]


def test_a_folder_is_held_in_place_of_what_lies_in_it(tmp_path):
    with held_outputs():
        check_outputs(tmp_path / "a", tmp_path / "b", folder=tmp_path)
        assert names_in(tmp_path) == []
        with pytest.raises(FileProblemError, match="is in use by another run"), hold_folder(tmp_path):
            pass


def test_every_command_refuses_an_output_that_another_run_holds(record_path, tmp_path):
    held = tmp_path / "held.json"
    code = (
        "import sys, time; from pathlib import Path; from dq_deploy.artifacts import hold_output\n"
        "with hold_output(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, held], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        for arguments in (
            ("info", record_path),
            ("export", "--ckpt", record_path, "--out", tmp_path / "x.onnx"),
            ("sample", "--ckpt", record_path, "--out", tmp_path / "x.png"),
            ("verify", "--engine", record_path),
            ("bench", "--engine", record_path),
            ("quantize", "--model", tmp_path, "--method", "minmax", "--out", tmp_path / "x.pt"),
        ):
            done = command(*arguments, "--json", held)
            assert done.code == 2, done.err
            assert done.err.count("\n") == 1
            assert f"held.json is being written by another run (process {process.pid})" in done.err
            assert "free space" not in done.err
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert command("info", record_path, "--json", held).code == 0  # a killed run holds nobody up
    assert names_in(tmp_path) == ["held.json", "m.pt"]


def test_a_training_folder_is_in_one_runs_hands(record_path, tmp_path):
    denoiser = tiny_denoiser(**ONE_LEVEL)
    denoiser.module.save_pretrained(tmp_path / "model" / "unet")
    state = tmp_path / "state"
    arguments = ("quantize", "--model", tmp_path / "model", "--preset", "fast", "--steps", 2, "--samples", 2)
    with hold_folder(state):
        (state / "kept").touch()
        done = command(*arguments, "--iterations", 1, "--resume-dir", state, "--out", tmp_path / "x.pt")
        assert done.code == 2
        assert "is in use by another run" in done.err.splitlines()[-1]
        assert names_in(state) == ["kept"]


def test_an_engine_goes_to_a_links_target_with_what_lies_beside_it(record_path, tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.onnx"
    link.symlink_to("there/real.onnx")
    done = command("export", "--ckpt", record_path, "--out", link)
    assert done.code == 0, done.err
    assert names_in(tmp_path / "there") == ["real.onnx", "real.onnx.json"]
    assert names_in(tmp_path) == ["link.onnx", "m.pt", "there"]
    assert command("info", link).code == 0
    assert command("sample", "--engine", link, "--count", 1, "--steps", 1, "--out", os.devnull).code == 0


def test_an_engine_into_a_pipe_is_refused_and_a_record_is_not(record_path, tmp_path):
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    done = command("export", "--ckpt", record_path, "--out", pipe)
    assert done.code == 2
    assert "is a pipe or a device, expected a file: the manifest is written beside it" in done.err
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    assert command("info", record_path, "--json", pipe).code == 0
    reader.join()
    assert got[0].startswith(b"{")
    assert pipe.is_fifo()
