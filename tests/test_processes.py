"""A worker answers typed requests; whatever it raises, prints or dies of reaches the asking side as it was."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from dq_deploy.errors import OptionError
from dq_deploy.processes import WorkerEndedError, WorkerError, WorkerProcess, WorkerTimeoutError, own_peak_mib, peak_mib
from dq_deploy.processes.asking import _Lines
from dq_deploy.processes.memory import give_back_freed

MUCH = 300_000
"""More bytes than a pipe holds."""
WORKER = """
import os, subprocess, sys, time
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
    inners: list[Inner] | None = None
    either: int | str | None = None
    neither: Inner | int | None = None

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
        tell(Inner(sizes=(os.getpid(),)))
        time.sleep(60)
    if request.what == "save":
        try:
            tell(Inner(sizes=()))
            time.sleep(60)
        except KeyboardInterrupt:
            print("saving" * 50_000)
            open(sys.argv[1], "w").write("state")
            raise
    if request.what == "leave a child":
        tell(Inner(sizes=(subprocess.Popen(["sleep", "60"]).pid,)))
        os._exit(3)
    if request.what == "twice":
        tell(Inner(sizes=()))
        return Do(what="twice", either=2)
    if request.what == "last":
        tell(Inner(sizes=()))
        os._exit(3)
    if request.what == "bytes":
        return Do(what=b"no text")
    if request.what == "first to go":
        return Do(what=open("/proc/self/oom_score_adj").read().strip())
    if request.what == "length":
        return Do(what="length", either=len(request.inner.sizes))
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
    inners: list[Inner] | None = None
    either: int | str | None = None
    neither: Inner | int | None = None


def runs(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(process: int) -> bool:
    """Whether a process ends within a while."""
    until = time.monotonic() + 20
    while runs(process) and time.monotonic() < until:
        time.sleep(0.05)
    return not runs(process)


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


@pytest.mark.parametrize("worker_code", [WORKER, WORKER.replace("do))", "do), expendable=True)")])
@pytest.mark.parametrize("busy", [False, True])
def test_it_dies_with_the_process_that_started_it(worker_code, busy):
    code = (
        "import sys, threading\nfrom tests.test_processes import Do, Inner, WorkerProcess\n"
        f"process = WorkerProcess((sys.executable, '-c', {worker_code!r}))\n"
        "print(process._process.pid, flush=True)\n"
        f"if {busy}: process.ask(Do(what='sleep'), Do, event=Inner, on_event=lambda event: print('busy', flush=True))\n"
        "process.ask(Do(what='echo'), Do)\nprint('idle', flush=True)\nsys.stdin.read()\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    child = int(starter.stdout.readline())
    assert starter.stdout.readline().strip() == ("busy" if busy else "idle")
    assert runs(child)
    starter.kill()
    starter.communicate()
    assert gone(child)


def test_it_outlives_the_thread_that_started_it():
    started: list[WorkerProcess] = []

    def start() -> None:
        started.append(WorkerProcess((sys.executable, "-c", WORKER)))
        started[0].ask(Do(what="echo"), Do)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    with started[0] as process:
        time.sleep(0.3)  # the kernel would have ended it by then
        assert process.ask(Do(what="echo"), Do) == Do(what="echo")


def test_only_an_expendable_one_goes_first_where_memory_ends():
    own = Path("/proc/self/oom_score_adj").read_text().strip()
    for code, expected in ((WORKER, own), (WORKER.replace("do))", "do), expendable=True)"), "1000")):
        with WorkerProcess((sys.executable, "-c", code)) as process:
            assert process.ask(Do(what="first to go"), Do).what == expected


def test_a_large_request_and_a_worker_that_prints_do_not_wait_for_each_other():
    noisy = f"import sys\nsys.stderr.write('x' * {MUCH} + chr(10)); sys.stderr.flush()\n" + WORKER
    with WorkerProcess((sys.executable, "-c", noisy)) as process:
        request = Do(what="length", inner=Inner(sizes=tuple(range(MUCH))))
        assert process.ask(request, Do, time_limit_s=30).either == MUCH


def test_a_large_request_to_a_worker_that_does_not_read_has_the_time_limit():
    with (
        WorkerProcess((sys.executable, "-c", "import time; time.sleep(60)")) as process,
        pytest.raises(WorkerTimeoutError),
    ):
        process.ask(Do(what="x" * MUCH), Do, time_limit_s=0.5)


def interrupt(event: Inner) -> None:
    raise KeyboardInterrupt


def test_a_worker_that_prints_much_when_it_is_interrupted_saves_its_state(tmp_path: Path):
    state = tmp_path / "state"
    with (
        pytest.raises(KeyboardInterrupt),
        WorkerProcess((sys.executable, "-c", WORKER, str(state)), grace_s=20) as process,
    ):
        process.ask(Do(what="save"), Do, event=Inner, on_event=interrupt)
    assert state.read_text() == "state"


def test_ctrl_c_reaches_the_asking_process_which_lets_the_worker_save(tmp_path: Path):
    state = tmp_path / "state"
    code = (
        "import sys\nfrom tests.test_processes import Do, Inner, WorkerProcess\n"
        f"with WorkerProcess((sys.executable, '-c', {WORKER!r}, {str(state)!r}), grace_s=20) as process:\n"
        "    process.ask(Do(what='save'), Do, event=Inner, on_event=lambda event: print('busy', flush=True))\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert starter.stdout is not None
    assert starter.stdout.readline() == "busy\n"
    os.killpg(starter.pid, signal.SIGINT)
    _, error = starter.communicate(timeout=30)
    assert error.strip().endswith("KeyboardInterrupt")
    assert state.read_text() == "state"


def test_what_a_worker_has_started_ends_with_it_though_it_ended_by_itself(mortal):
    children: list[int] = []

    def note(event: Inner) -> None:
        children.extend(event.sizes)

    with pytest.raises(WorkerEndedError, match="code 3"):
        mortal.ask(Do(what="leave a child"), Do, event=Inner, on_event=note)
    assert len(children) == 1
    assert gone(children[0])


def test_an_interrupted_request_leaves_no_answer_for_the_next(worker):
    with pytest.raises(KeyboardInterrupt):
        worker.ask(Do(what="twice"), Do, event=Inner, on_event=interrupt)
    assert worker.ask(Do(what="echo"), Do) == Do(what="echo")


def late(event: Inner) -> None:
    """Keep the asking side busy until its time limit has passed."""
    time.sleep(1.0)


def test_what_came_before_the_limit_counts(mortal):
    assert mortal.ask(Do(what="twice"), Do, event=Inner, on_event=late, time_limit_s=0.8).either == 2
    with pytest.raises(WorkerEndedError, match="code 3"):
        mortal.ask(Do(what="last"), Do, event=Inner, on_event=late, time_limit_s=0.8)


def test_a_result_that_json_does_not_hold_is_an_error_and_the_worker_lives_on(worker):
    with pytest.raises(WorkerError, match="TypeError") as caught:
        worker.ask(Do(what="bytes"), Do)
    assert caught.value.failure.kind == "TypeError"
    assert caught.value.failure.last_line == "TypeError: Object of type bytes is not JSON serializable"
    assert worker.ask(Do(what="echo"), Do) == Do(what="echo")


@pytest.mark.parametrize(
    "request_",
    [
        Do(what="echo", inners=[Inner(sizes=(1,)), Inner(sizes=())]),
        Do(what="echo", either=1),
        Do(what="echo", either="a"),
    ],
)
def test_lists_of_dataclasses_and_plain_unions_arrive_as_they_were_sent(request_, worker):
    assert worker.ask(request_, Do) == request_


def test_a_union_that_json_does_not_tell_apart_is_an_error(worker):
    with pytest.raises(WorkerError, match="JSON does not tell which of") as caught:
        worker.ask(Do(what="echo", neither=1), Do)
    assert caught.value.failure.kind == "TypeError"


def test_long_lines_are_joined_once():
    pieces, lines = 500, _Lines()
    started = time.process_time()
    for _ in range(pieces):
        assert lines.of(b"x" * (1 << 16)) == []
    assert time.process_time() - started < 2.0
    (line,) = lines.of(b"y\n")
    assert len(line) == pieces * (1 << 16) + 1
    assert lines.of(b"a\nb\nc") == ["a", "b"]
    assert lines.of(b"\n") == ["c"]


def test_the_peak_is_this_processs_own():
    assert peak_mib() == pytest.approx(own_peak_mib(), rel=0.1)
    assert peak_mib(os.getpid()) == pytest.approx(own_peak_mib(), rel=0.1)
    assert peak_mib(2**22 + 1) is None


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library has no malloc_trim")
def test_freed_memory_between_pieces_in_use_goes_back_to_the_system() -> None:
    kept = [np.ones(8000) for _ in range(3000)]
    kept = kept[::50]
    before = resident_mib()
    give_back_freed()
    assert resident_mib() < before - 100
    assert all(piece.all() for piece in kept)


def resident_mib() -> float:
    return psutil.Process().memory_info().rss / (1 << 20)
