"""The pool of threads: many small jobs, several contexts and callers, idle threads, forks and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from dq_kernels.cpu.library import Context, KernelInputError, call_list
from dq_kernels.cpu.structs import ELEMENTWISE_KINDS, ElementwiseArgs

VALUES = 70_000  # enough for several tasks


class Doubling:
    """y = 2 a over and over."""

    def __init__(self, repeats: int, values: int = VALUES) -> None:
        self.a = np.random.default_rng(values).standard_normal(values).astype(np.float32)
        self.y = np.zeros_like(self.a)
        args = ElementwiseArgs(a=self.a.ctypes.data, y=self.y.ctypes.data, scalar=2.0)
        args.kind = ELEMENTWISE_KINDS.index("mul_scalar")
        args.size[:] = (1, 1, 1, 1, 1, values)
        args.a_stride[:] = args.y_stride[:] = (0, 0, 0, 0, 0, 1)
        self.calls = call_list([("elementwise", args)] * repeats)

    def run(self, context: Context) -> None:
        self.y[:] = 0
        context.run(self.calls)
        assert np.array_equal(self.y, 2 * self.a)


@pytest.mark.parametrize("threads", [2, 8])
def test_ten_thousand_small_calls_finish(threads):
    with Context(threads) as context:
        for values in (64, 40_000):
            Doubling(10_000, values).run(context)


def test_a_run_after_a_pause_wakes_the_threads():
    job = Doubling(3)
    with Context(3) as context:
        for _ in range(20):
            job.run(context)
            time.sleep(0.002)


def test_an_idle_context_uses_no_cpu_time():
    with Context(4) as context:
        Doubling(10).run(context)
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.02


def test_two_contexts_work_at_once():
    failed = []

    def work() -> None:
        job = Doubling(200)
        with Context(2) as context:
            for _ in range(5):
                try:
                    job.run(context)
                except AssertionError as error:
                    failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_runs_of_one_context_from_several_threads_follow_one_another():
    failed = []

    def work(context: Context, values: int) -> None:
        job = Doubling(100, values)
        for _ in range(5):
            try:
                job.run(context)
            except AssertionError as error:
                failed.append(error)

    with Context(3) as context:
        threads = [threading.Thread(target=work, args=(context, VALUES + i)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed


def threads_become(wanted: int) -> bool:
    """Whether this process has that many threads within two seconds; one that has ended stays listed for a moment."""
    end = time.monotonic() + 2
    while len(os.listdir("/proc/self/task")) != wanted and time.monotonic() < end:
        time.sleep(0.005)
    return len(os.listdir("/proc/self/task")) == wanted


def settled_threads() -> int:
    time.sleep(0.02)
    return len(os.listdir("/proc/self/task"))


def in_fork(work) -> int:
    """Exit status of `work` in a forked child; it is killed after 20 seconds."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # the child must not run the tests that follow
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


def test_a_forked_child_runs_with_threads_of_its_own():
    job = Doubling(50)
    with Context(3) as context:
        job.run(context)

        def child() -> None:
            job.run(context)
            assert len(os.listdir("/proc/self/task")) == 3
            context.close()

        assert in_fork(child) == 0
        job.run(context)


def test_a_forked_child_may_close_a_context_it_never_used():
    with Context(3) as context:
        Doubling(5).run(context)
        assert in_fork(context.close) == 0


def test_a_child_forked_during_a_run_does_not_hang():
    with Context(2) as context:
        busy = threading.Thread(target=Doubling(20_000).run, args=(context,))
        busy.start()
        job = Doubling(10, VALUES + 1)
        assert [in_fork(lambda: job.run(context)) for _ in range(3)] == [0, 0, 0]
        busy.join()


def test_closing_ends_the_threads_and_a_run_afterwards_is_refused():
    before = settled_threads()
    context = Context(5)
    assert threads_become(before + 4)
    context.close()
    context.close()
    assert threads_become(before)
    with pytest.raises(KernelInputError, match="the context is closed"):
        Doubling(1).run(context)


def test_a_context_that_is_dropped_ends_its_threads():
    before = settled_threads()
    Doubling(1).run(Context(4))
    assert threads_become(before)


def test_control_c_ends_python_at_once():
    code = (
        "import time\nfrom dq_kernels.cpu.library import Context\n"
        "from tests.kernels.test_pool import Doubling\n"
        "context = Context(3)\nDoubling(10).run(context)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    start = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=20)
    assert time.monotonic() - start < 5
    assert "KeyboardInterrupt" in errors


@pytest.mark.parametrize("threads", [1, 2])
def test_denormals_are_kept_whatever_the_caller_set(threads):
    torch = pytest.importorskip("torch")
    tiny = np.full(VALUES, 1e-39, np.float32)  # below the least normal number
    y = np.zeros_like(tiny)
    args = ElementwiseArgs(a=tiny.ctypes.data, y=y.ctypes.data, scalar=1.0)
    args.kind = ELEMENTWISE_KINDS.index("mul_scalar")
    args.size[:] = (1, 1, 1, 1, 1, VALUES)
    args.a_stride[:] = args.y_stride[:] = (0, 0, 0, 0, 0, 1)
    assert torch.set_flush_denormal(True)
    try:
        with Context(threads) as context:
            context.run(call_list([("elementwise", args)]))
        assert not (tiny * np.float32(1.0)).any()  # the caller's own mode is back
    finally:
        torch.set_flush_denormal(False)
    assert y.tobytes() == np.full(VALUES, 1e-39, np.float32).tobytes()
