"""Outputs that are no plain files: links are followed, pipes and devices get the bytes, nothing else is replaced."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import subprocess
import sys
import threading

import pytest

from dq_deploy.artifacts import (
    atomic_path,
    check_writable,
    file_for_several,
    hold_folder,
    hold_output,
    is_utf8,
    utf8_name,
    write_bytes_atomic,
    write_text_atomic,
)
from dq_deploy.errors import FileProblemError, ReaderGoneError

HOLDING = """
import sys, time
from pathlib import Path
from dq_deploy.artifacts import hold_folder, hold_output
with (hold_folder if sys.argv[1] == "folder" else hold_output)(Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_link_is_followed_and_its_temporary_file_lies_beside_the_target(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    link = tmp_path / "here" / "link"
    link.symlink_to("../there/real")
    for content in ("dangling", "existing"):  # the target is made, then replaced
        with atomic_path(link) as temporary:
            assert temporary.parent == tmp_path / "there"
            temporary.write_text(content)
        assert link.is_symlink()
        assert (tmp_path / "there" / "real").read_text() == content
    assert (names_in(tmp_path / "here"), names_in(tmp_path / "there")) == (["link"], ["real"])


def test_links_that_lead_nowhere_or_in_circles_are_one_line(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lost").symlink_to("none/file")
    for name, message in (("loop", "Too many levels"), ("lost", "folder .*none does not exist")):
        with pytest.raises(FileProblemError, match=message):
            check_writable(tmp_path / name)


def test_a_pipe_gets_the_bytes_and_stays_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    check_writable(pipe)
    content = os.urandom(200_000)  # more than a pipe holds
    write_bytes_atomic(pipe, content)
    reader.join()
    assert got == [content]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names_in(tmp_path) == ["pipe"]


def test_devices_get_the_bytes():
    write_text_atomic_to = ("/dev/null", "/dev/full")
    check_writable(os.devnull)
    write_bytes_atomic(write_text_atomic_to[0], b"x")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    with pytest.raises(FileProblemError, match="cannot write /dev/full: No space left on device; free space"):
        write_bytes_atomic(write_text_atomic_to[1], b"x")


def written_by_process(tmp_path, target, **streams):
    code = (
        "import sys; from pathlib import Path; from dq_deploy.artifacts import write_text_atomic\n"
        "print('before'); write_text_atomic(Path(sys.argv[1]), 'the text'); print(' behind')"
    )
    return subprocess.run([sys.executable, "-c", code, target], cwd=tmp_path, check=True, **streams)


@pytest.mark.parametrize("target", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "mine"])
@pytest.mark.parametrize("to_file", [True, False])
def test_standard_output_by_its_name_gets_the_text_in_its_place(tmp_path, target, to_file):
    (tmp_path / "mine").symlink_to("/dev/stdout")
    if to_file:  # renaming over the file would lose what was printed
        with (tmp_path / "out").open("wb") as out:
            written_by_process(tmp_path, target, stdout=out)
        got = (tmp_path / "out").read_bytes()
    else:
        got = written_by_process(tmp_path, target, stdout=subprocess.PIPE).stdout
    assert got == b"before\nthe text behind\n"


def test_a_descriptor_that_is_not_open_for_writing_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with (tmp_path / "file").open("rb") as stream:
        with pytest.raises(FileProblemError, match="not open for writing"):
            check_writable(f"/dev/fd/{stream.fileno()}")
        number = stream.fileno()
    with pytest.raises(FileProblemError, match="not open for writing"):
        check_writable(f"/dev/fd/{number}")


def test_an_own_descriptor_whose_reader_went_away_says_so():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        with pytest.raises(ReaderGoneError):
            write_bytes_atomic(f"/dev/fd/{writing}", b"x")
    finally:
        os.close(writing)


def test_what_is_no_file_pipe_or_device_is_never_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("sock")
        for name, what in (("sock", "a socket"), (".", "a folder")):
            for write in (check_writable, lambda path: write_text_atomic(path, "x")):
                with pytest.raises(FileProblemError, match=f"is {what}"):
                    write(name)
    assert names_in(tmp_path) == ["sock"]


def test_a_file_with_others_beside_it_is_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("real")
    assert file_for_several(tmp_path / "link", "a thing") == tmp_path / "real"
    for name in (tmp_path / "pipe", os.devnull):
        with pytest.raises(FileProblemError, match="is a pipe or a device, expected a file: a thing is written beside"):
            file_for_several(name, "a thing")


@pytest.mark.parametrize("letter", ["n", "ü"])
def test_outputs_whose_long_names_begin_alike_are_not_one(tmp_path, letter):
    begin = letter * (240 // len(letter.encode()))
    with hold_output(tmp_path / f"{begin}.onnx"), hold_output(tmp_path / f"{begin}.onnx.json"):
        locks = [path.name for path in tmp_path.iterdir()]
    assert len(locks) == 2
    assert all(is_utf8(tmp_path / name) for name in locks)


def test_a_name_of_full_length_can_be_written_and_a_longer_one_is_named(tmp_path):
    write_text_atomic(tmp_path / ("ü" * 127), "x")
    with hold_output(tmp_path / ("ü" * 127)):
        pass
    with pytest.raises(FileProblemError, match="File name too long; choose a shorter name"):
        check_writable(tmp_path / ("a" * 256))


@pytest.fixture
def held(request, tmp_path):
    """Another process that holds an output or a folder; gives what holds it here."""
    path = tmp_path / "thing"
    process = subprocess.Popen([sys.executable, "-c", HOLDING, request.param, path], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process, path, hold_folder if request.param == "folder" else hold_output
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("held", ["folder", "file"], indirect=True)
def test_what_another_run_holds_is_refused_with_its_number_until_it_ends_or_is_killed(held, tmp_path):
    process, path, hold = held
    with (
        pytest.raises(FileProblemError, match=rf"another run \(process {process.pid}\); wait until it has ended"),
        hold(path),
    ):
        pass
    process.kill()
    process.wait()
    # nothing of a killed run is in the way
    with hold(path), pytest.raises(FileProblemError, match="another run"), hold(path):
        pass
    with hold(path):
        pass
    assert [name for name in names_in(tmp_path) if name != "thing"] == []


def test_a_folder_that_was_made_to_be_held_stays_only_with_content(tmp_path):
    with hold_folder(tmp_path / "a" / "b"):
        pass
    assert names_in(tmp_path / "a") == []
    with hold_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").touch()
    assert names_in(tmp_path / "a" / "b") == ["kept"]


def test_a_file_system_without_locks_holds_nobody_up(tmp_path, monkeypatch):
    def refuse(descriptor, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold_output(tmp_path / "a"), hold_folder(tmp_path):
        pass
    assert names_in(tmp_path) == []


def test_a_name_that_is_no_utf8_is_read_and_written_by_compiled_libraries(tmp_path):
    import numpy as np
    from safetensors.numpy import load_file, save_file

    path = tmp_path / os.fsdecode(b"bad\xff.safetensors")
    with atomic_path(path) as temporary:
        save_file({"a": np.ones(2)}, temporary)
    with utf8_name(path) as name:
        assert load_file(name)["a"].tolist() == [1, 1]
    assert [os.fsencode(name) for name in os.listdir(tmp_path)] == [b"bad\xff.safetensors"]


def test_a_library_that_hides_a_full_disk_is_one_line(tmp_path):
    from safetensors import SafetensorError

    def write():
        with atomic_path(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(FileProblemError, match=r"cannot write .*No space left.*; free space"):
        write()
    assert names_in(tmp_path) == []
