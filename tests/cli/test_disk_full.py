"""A write that fails half-way is one line, code 2, and leaves nothing behind; so is a kill during an export."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dq_deploy import save_record
from tests.forked import Forked
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

LIMIT = 4096  # bytes a file may have; the write behind them fails as on a full disk


def run_limited(name: str, *arguments) -> subprocess.CompletedProcess[str]:
    return Forked(f"dq_deploy.cli.{name}", *arguments, most_bytes=LIMIT).ended()


@pytest.fixture(scope="module")
def small_record_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "small.pt"
    save_record(random_record(tiny_denoiser(**ONE_LEVEL)), path)
    return path


def check_full_disk(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 2, done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: cannot write")
    assert "free space" in error


def test_a_full_disk_is_one_line_and_leaves_nothing(small_record_path, tmp_path):
    out = tmp_path / "samples.png"
    check_full_disk(run_limited("sample", "--ckpt", small_record_path, "--out", out, "--count", "40", "--steps", "1"))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_file_of_the_same_name_and_nothing_else(small_record_path, tmp_path):
    out = tmp_path / "unet.onnx"
    out.write_bytes(b"the last good one")
    check_full_disk(run_limited("export", "--ckpt", small_record_path, "--out", out))
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_bytes() == b"the last good one"


@pytest.mark.parametrize("delay_s", [0.2, 1.0])  # loading torch alone takes longer
def test_an_interrupted_export_leaves_nothing(delay_s, small_record_path, tmp_path):
    code = (
        "import os, signal, sys, threading; from dq_deploy.cli.export import main; sys.argv[0] = 'dq-export';"
        f"threading.Timer({delay_s}, os.kill, (os.getpid(), signal.SIGINT)).start(); main()"
    )
    arguments = ["--ckpt", small_record_path, "--out", tmp_path / "unet.onnx"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "error: interrupted"
    assert list(tmp_path.iterdir()) == []
