"""A worker answers typed requests; whatever it raises, prints or dies of reaches the asking side as it was."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from dq_deploy.errors import OptionError
from dq_deploy.processes import WorkerEndedError, WorkerError, WorkerProcess, WorkerTimeoutError, own_peak_mib, peak_mib

WORKER = """
import os, sys, time
from dataclasses import dataclass
from dq_deploy.errors import OptionError
from dq_deploy.processes import Handler, serve

@dataclass(frozen=True, kw_only=True)
class Inner:
    sizes: tuple[int, ...]

@dataclass(frozen=True, kw_only=True)
class Do:
    what: str
    inner: Inner | None = None

def do(request, tell):
    if request.what == "echo":
        tell(Inner(sizes=(1, 2)))
        print("a library prints")
        os.write(1, b"and another, in C\\n")
        return request
    if request.what == "refuse":
        raise OptionError("no such option")
    if request.what == "write":
        raise OSError(28, "No space left on device")
    if request.what == "fault":
        raise ZeroDivisionError("by nothing")
    if request.what == "sleep":
        time.sleep(60)
    if request.what == "exit":
        print("last words")
        sys.stdout.flush()
        os._exit(3)
    os.kill(os.getpid(), int(request.what))

serve(Handler(Do, do))
"""


@dataclass(frozen=True, kw_only=True)
class Inner:
    sizes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Do:
    what: str
    inner: Inner | None = None


@pytest.fixture(scope="module")
def worker():
    with WorkerProcess((sys.executable, "-c", WORKER)) as process:
        yield process


@pytest.fixture
def mortal():
    with WorkerProcess((sys.executable, "-c", WORKER)) as process:
        yield process


def test_values_events_and_the_peak_arrive_as_they_were_sent(worker):
    events = []
    request = Do(what="echo", inner=Inner(sizes=(3, 4)))
    assert worker.ask(request, Do, event=Inner, on_event=events.append) == request
    assert events == [Inner(sizes=(1, 2))]
    assert 5 < worker.peak_mib < 1000


def test_an_error_of_ours_keeps_its_class_and_the_worker_lives_on(worker):
    with pytest.raises(WorkerError, match=r"^no such option$") as caught:
        worker.ask(Do(what="refuse"), Do)
    assert type(caught.value.failure.own_error) is OptionError
    assert worker.ask(Do(what="echo"), Do) == Do(what="echo")


def test_other_errors_say_what_they_are(worker):
    with pytest.raises(WorkerError) as caught:
        worker.ask(Do(what="write"), Do)
    assert (caught.value.failure.kind, caught.value.failure.errno) == ("OSError", 28)
    with pytest.raises(WorkerError, match="ZeroDivisionError: by nothing") as caught:
        worker.ask(Do(what="fault"), Do)
    assert caught.value.failure.own_error is None
    assert caught.value.failure.exit_code == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_signal_has_its_name(number, mortal):
    with pytest.raises(WorkerEndedError, match=f"ended by {number.name}") as caught:
        mortal.ask(Do(what=str(int(number))), Do)
    assert caught.value.ending.signal_name == number.name
    assert "\n" not in str(caught.value)


def test_an_exit_has_its_code_and_last_line(mortal):
    with pytest.raises(WorkerEndedError, match="ended with code 3: last words"):
        mortal.ask(Do(what="exit"), Do)


def test_a_time_limit_ends_it(mortal):
    with pytest.raises(WorkerTimeoutError, match=r"more than 0\.5 s") as caught:
        mortal.ask(Do(what="sleep"), Do, time_limit_s=0.5)
    assert caught.value.limit_s == 0.5
    assert caught.value.ending.signal_name == "SIGKILL"


def test_a_log_gets_every_line():
    log = io.StringIO()
    with WorkerProcess((sys.executable, "-c", WORKER), log=log) as process:
        process.ask(Do(what="echo"), Do)
        with pytest.raises(WorkerEndedError):
            process.ask(Do(what="9"), Do)
    assert log.getvalue().splitlines()[:2] == ["a library prints", "and another, in C"]


def test_it_dies_with_the_process_that_started_it(tmp_path: Path):
    code = (
        "import sys, os\nfrom dq_deploy.processes import WorkerProcess\n"
        f"process = WorkerProcess((sys.executable, '-c', {WORKER!r}))\n"
        "print(process._process.pid, flush=True)\nsys.stdin.read()\n"
    )
    import subprocess

    starter = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    child = int(starter.stdout.readline())
    starter.kill()
    starter.communicate()
    until = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_the_peak_is_this_processs_own():
    assert peak_mib() == pytest.approx(own_peak_mib(), rel=0.1)
    assert peak_mib(os.getpid()) == pytest.approx(own_peak_mib(), rel=0.1)
    assert peak_mib(2**22 + 1) is None
