"""Files are whole under their final name or not there, whatever stops the writing."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from dq_deploy.artifacts import (
    atomic_folder,
    atomic_path,
    check_new_folder,
    check_writable,
    hold_output,
    sha256_of_bytes,
    sha256_of_file,
    write_bytes_atomic,
    write_text_atomic,
)
from dq_deploy.errors import FileProblemError

LIMITED = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from dq_deploy.artifacts import write_bytes_atomic
from dq_deploy.errors import FileProblemError
try:
    write_bytes_atomic(Path("out.bin"), bytes(100_000))
except FileProblemError as error:
    print(error)
    sys.exit(error.exit_code)
"""
SLOW = """
import time
from pathlib import Path
from dq_deploy.artifacts import atomic_path
with atomic_path(Path("out.bin")) as temporary, temporary.open("wb") as stream:
    stream.write(b"half")
    stream.flush()
    print("started", flush=True)
    time.sleep(60)
"""


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_written_file_is_whole_and_alone(tmp_path):
    write_text_atomic(tmp_path / "a.txt", "grün\n")
    write_bytes_atomic(tmp_path / "b.bin", b"\x00\xff")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "grün\n"
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"
    assert names_in(tmp_path) == ["a.txt", "b.bin"]
    assert sha256_of_file(tmp_path / "b.bin") == sha256_of_bytes(b"\x00\xff")


def save_tensors(path):
    save_file({"a": np.zeros(1, np.float32)}, path)  # for its owner's eyes alone


@pytest.mark.parametrize("write", [lambda path: path.write_bytes(b"a"), save_tensors], ids=["bytes", "safetensors"])
@pytest.mark.parametrize("umask", [0o022, 0o077], ids=oct)
def test_the_system_says_who_may_read_a_new_file_and_an_old_one_keeps_its_permissions(tmp_path, write, umask):
    (tmp_path / "old").write_bytes(b"")
    (tmp_path / "old").chmod(0o640)
    before = os.umask(umask)
    try:
        for name in ("new", "old"):
            with atomic_path(tmp_path / name) as temporary:
                write(temporary)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"new": 0o666 & ~umask, "old": 0o640}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_an_exception_leaves_the_old_file_as_it_was(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_and_fail():
        with atomic_path(path) as temporary:
            temporary.write_text("new and incompl")
            raise error

    with pytest.raises(error):
        write_and_fail()
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_file_that_grows_past_the_limit_leaves_nothing(tmp_path, old):
    if old is not None:
        (tmp_path / "out.bin").write_bytes(old)
    done = subprocess.run([sys.executable, "-c", LIMITED], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith("cannot write out.bin: File too large")
    assert names_in(tmp_path) == ([] if old is None else ["out.bin"])
    assert old is None or (tmp_path / "out.bin").read_bytes() == old


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which this system lacks")
def test_a_full_disk_is_one_clear_error(tmp_path):
    def write_to_a_full_device():
        with atomic_path(tmp_path / "a.bin") as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_bytes(bytes(10))

    with pytest.raises(FileProblemError, match=r"cannot write .*a\.bin: No space left on device; free space"):
        write_to_a_full_device()
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_process_leaves_no_file_under_the_final_name(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout.readline() == b"started\n"
    process.send_signal(number)
    assert process.wait(30) != 0
    process.stdout.close()
    assert "out.bin" not in names_in(tmp_path)
    if number == signal.SIGINT:  # the others cannot clean up behind themselves
        assert names_in(tmp_path) == []


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes_atomic(path, b"a" * 100_000)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        with path.open("rb") as reader:
            write_bytes_atomic(path, b"b" * 100_000)
            assert set(reader.read()) == {ord("a")}
        write_bytes_atomic(path, b"a" * 100_000)


def test_a_missing_folder_is_named_when_writing(tmp_path):
    with pytest.raises(FileProblemError, match=r"cannot write .*none/a\.txt: No such file"):
        write_text_atomic(tmp_path / "none" / "a.txt", "x")


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileProblemError, match="cannot write"), atomic_path(tmp_path / "a.txt"):
        pass
    assert names_in(tmp_path) == []


def test_outputs_that_cannot_be_written_are_refused_early(tmp_path):
    check_writable(tmp_path / "a.txt")
    assert names_in(tmp_path) == []
    with pytest.raises(FileProblemError, match="is a folder, expected a file name"):
        check_writable(tmp_path)
    with pytest.raises(FileProblemError, match=r"folder .*none does not exist; create it"):
        check_writable(tmp_path / "none" / "a.txt")
    (tmp_path / "file").write_text("x")
    for name in ("file/a.txt", "file/none/a.txt"):
        with pytest.raises(FileProblemError, match=r"/file is a file, expected a folder to write into; choose another"):
            check_writable(tmp_path / name)


def test_a_folder_without_permission_is_refused_early():
    target = "/proc/self/a.txt"  # no process may create files there, root included
    if not os.path.isdir("/proc/self"):
        pytest.skip("needs /proc, which this system lacks")
    from pathlib import Path

    with pytest.raises(FileProblemError, match="cannot write into /proc/self"):
        check_writable(Path(target))


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("a")
        assert {path.name for path in tmp_path.iterdir()} == {folder.name, ".out.lock"}
    assert (tmp_path / "out" / "a.txt").read_text() == "a"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def interrupted():
        with atomic_folder(tmp_path / "other") as folder:
            (folder / "a.txt").write_text("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_new_folder_may_be_empty_and_nothing_else_may_be_there(tmp_path):
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as folder:
        (folder / "a.txt").write_text("a")
    assert (tmp_path / "empty" / "a.txt").is_file()
    with pytest.raises(FileProblemError, match="is a folder with files in it, expected a new one"):
        check_new_folder(tmp_path / "empty")
    with pytest.raises(FileProblemError, match="is a file, expected a new folder"):
        check_new_folder(tmp_path / "empty" / "a.txt")
    with pytest.raises(FileProblemError, match="does not exist"):
        check_new_folder(tmp_path / "missing" / "out")


def test_a_name_with_a_nul_is_refused_in_one_line(tmp_path):
    from dq_deploy import IntegerDenoiser, load_model, load_record, open_engine
    from dq_deploy.models.pipeline import open_pipeline

    for reads in (IntegerDenoiser, load_model, load_record, open_engine, open_pipeline):
        for name in ("a\0b", "a\0b.pt", "a\0b.onnx", "a\0b.dqn", "a\0b.plan"):
            with pytest.raises(FileProblemError, match=r"NUL character|extension"):
                reads(tmp_path / name)
    with pytest.raises(FileProblemError, match="NUL character"), atomic_path(tmp_path / "a\0b"):
        pass


def test_a_folder_that_another_run_writes_is_refused_before_anything_is_made(tmp_path):
    with (
        hold_output(tmp_path / "out"),
        pytest.raises(FileProblemError, match="out is being written by another run"),
        atomic_folder(tmp_path / "out"),
    ):
        pytest.fail("it was begun")
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
