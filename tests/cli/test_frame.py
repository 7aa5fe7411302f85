"""Whatever happens in a command, the user sees one line and the exit code says whose fault it was."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from dq_deploy.cli.frame import check_outputs, numbers_from_text, run, warn, write_json
from dq_deploy.errors import FileProblemError, GuaranteeError, OptionError

SCRIPT = """
import sys, time
from dq_deploy.artifacts import atomic_path
from dq_deploy.cli.frame import run
from pathlib import Path

def demo(what: str, out: Path = Path("unused")) -> None:
    if what == "print":
        for number in range(100000):
            print(number)
    with atomic_path(out) as temporary:
        temporary.write_text("half")
        print("started", flush=True)
        time.sleep(30)

run(demo)
"""


def outcome(command, argv, capsys):
    with pytest.raises(SystemExit) as caught:
        run(command, argv)
    return caught.value.code, capsys.readouterr()


def raiser(error):
    def demo(number: int = 1) -> None:
        """Do a thing."""
        raise error

    return demo


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OptionError("got a,\n  expected b"), 2, "error: got a, expected b"),
        (
            OptionError("a\x1b[31m\x00 is é猫"),
            2,
            "error: a\\x1b[31m\\x00 is é猫",
        ),  # which would colour a screen
        (GuaranteeError("layer x differs"), 3, "error: layer x differs"),
        (ValueError("odd"), 1, "error: internal error: ValueError: odd; rerun with --debug for the traceback"),
        (
            MemoryError("no 9 GiB"),
            2,
            "error: there is not enough memory (no 9 GiB); give a smaller model, batch or --memory-gib, or more memory",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_a_failure_is_one_line_and_a_code(error, code, line, capsys):
    found, printed = outcome(raiser(error), [], capsys)
    assert found == code
    assert printed.err == line + "\n"
    assert printed.out == ""


def test_debug_prints_the_traceback_too(capsys):
    found, printed = outcome(raiser(OptionError("got a")), ["--debug"], capsys)
    assert found == 2
    assert "Traceback" in printed.err
    assert printed.err.endswith("error: got a\n")


@pytest.mark.parametrize("argv", [["--nope"], ["--number", "x"], ["extra"]])
def test_a_wrong_command_line_is_one_line_and_code_two(argv, capsys):
    found, printed = outcome(raiser(AssertionError("not reached")), argv, capsys)
    assert found == 2
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert "--help" in printed.err


def test_a_command_that_ends_well_exits_with_zero(capsys):
    def demo(number: int = 1) -> None:
        print(number + 1)

    found, printed = outcome(demo, ["--number", "4"], capsys)
    assert (found, printed.out, printed.err) == (0, "5\n", "")


@pytest.fixture(autouse=True)
def hanging_up_is_not_ignored():
    """Under nohup a process ignores the signal, and so do all that it starts; the command leaves it at that."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


ENDINGS = [
    (signal.SIGTERM, 143, "terminated"),
    (signal.SIGINT, 130, "interrupted"),
    (signal.SIGHUP, 129, "the terminal is gone"),
]


@pytest.mark.parametrize(("number", "code", "word"), ENDINGS)
def test_a_signal_leaves_no_half_written_file(number, code, word, tmp_path):
    script = tmp_path / "demo.py"
    script.write_text(SCRIPT)
    folder = tmp_path / "out"
    folder.mkdir()
    command = [sys.executable, str(script), "write", "--out", str(folder / "result")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    time.sleep(0.1)
    process.send_signal(number)
    _, error = process.communicate(timeout=20)
    assert process.returncode == code
    assert error == f"error: {word}\n"
    assert list(folder.iterdir()) == []


def test_a_reader_that_goes_away_is_no_error_message(tmp_path):
    script = tmp_path / "demo.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), "print"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=20) == 141


@pytest.mark.parametrize(("text", "numbers"), [("1,4,8", (1, 4, 8)), ("0-3", (0, 1, 2, 3)), (" 2 ,5-6", (2, 5, 6))])
def test_lists_of_numbers(text, numbers):
    assert numbers_from_text(text, "--labels", low=0) == numbers


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "1.5", "3-1", "0,99", "0-4000000000", "\uff11", "9" * 5000])
def test_what_is_no_list_of_numbers_is_refused(text):
    with pytest.raises(OptionError, match="--labels got"):
        numbers_from_text(text, "--labels", low=0, high=10)


def test_the_example_in_the_message_is_a_list_that_is_taken():
    with pytest.raises(OptionError, match=r"--batch got '', expected integers from 1 such as 1,2,3 or 1-3"):
        numbers_from_text("", "--batch", low=1)


def test_outputs_are_refused_before_any_work(tmp_path):
    check_outputs(tmp_path / "a", None, tmp_path / "b")
    with pytest.raises(FileProblemError, match="does not exist"):
        check_outputs(tmp_path / "missing" / "a")
    with pytest.raises(FileProblemError, match="is a folder"):
        check_outputs(tmp_path)
    with pytest.raises(OptionError, match="two outputs"):
        check_outputs(tmp_path / "a", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_no_output_replaces_what_is_read(tmp_path):
    check_outputs(tmp_path / "unet.plan.json", inputs=(tmp_path / "model.pt", None))
    for name in ("unet.onnx", "unet.onnx.json", "unet.onnx.data", "./unet.onnx"):
        with pytest.raises(OptionError, match="would replace a file that is read; give it another name"):
            check_outputs(tmp_path / "a", tmp_path / name, inputs=(tmp_path / "unet.onnx",))
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").touch()
    check_outputs(tmp_path / "unet" / "record.safetensors", inputs=(tmp_path,))
    with pytest.raises(OptionError, match="would replace"):
        check_outputs(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", inputs=(tmp_path,))


def test_json_has_no_words_that_json_lacks(tmp_path):
    write_json(tmp_path / "x.json", {"a": float("inf"), "b": [float("nan"), 1.5], "c": (1, None)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 1.5], "c": [1, None]}


def test_no_line_is_longer_than_a_screen_and_its_advice_stays(capsys):
    def demo() -> None:
        warn("w " * 5000)
        raise OptionError(f"it lacks {', '.join(f'layer.{i}' for i in range(900))}; give another file")

    found, printed = outcome(demo, [], capsys)
    warning, error = printed.err.splitlines()
    assert found == 2
    assert len(warning) <= 300
    assert len(error) <= 300
    assert error.startswith("error: it lacks layer.0, layer.1")
    assert error.endswith("; give another file")


def test_a_failure_inside_a_library_is_no_internal_error(capsys):
    import torch

    def demo() -> None:
        torch.nn.Linear(2, 3)(torch.ones(1, 5))

    found, printed = outcome(demo, [], capsys)
    assert found == 2
    assert printed.err.count("\n") == 1
    assert "failed: RuntimeError" in printed.err
    assert "internal error" not in printed.err


def test_the_version_is_told(capsys):
    from dq_deploy import __version__

    found, printed = outcome(raiser(AssertionError("not reached")), ["--version"], capsys)
    assert (found, printed.out, printed.err) == (0, f"dq_deploy {__version__}\n", "")


SWALLOWING = """
import os, signal, sys, time, weakref
from dq_deploy.cli.frame import run

class Thing:
    pass

def demo() -> None:
    thing = Thing()
    # what a callback of a weak reference raises goes nowhere, as in that of an import's lock
    kept = weakref.ref(thing, lambda _: (os.kill(os.getpid(), getattr(signal, sys.argv[1])), time.sleep(1)))
    del thing
    time.sleep(20)

run(demo, [])
"""


@pytest.mark.parametrize(("number", "code", "word"), ENDINGS)
def test_a_signal_that_meets_python_in_a_callback_still_ends_the_command(number, code, word):
    done = subprocess.run([sys.executable, "-c", SWALLOWING, number.name], capture_output=True, text=True, timeout=15)
    assert (done.returncode, done.stderr) == (code, f"error: {word}\n")
