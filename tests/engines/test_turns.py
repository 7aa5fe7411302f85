"""Threads that share an engine, its end while they run, and the children of a fork."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from dq_deploy.engines.turns import Turns
from dq_deploy.errors import InputError
from dq_deploy.models import example_inputs
from dq_deploy.open_engine import open_engine
from dq_deploy.record import save_record
from dq_deploy.targets import export
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

ENGINES = ("onnxruntime", "openvino", "native")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same record as each engine takes it."""
    folder = tmp_path_factory.mktemp("shared")
    record = random_record(tiny_denoiser(**ONE_LEVEL))
    paths = {"native": folder / "model.pt"}
    save_record(record, paths["native"])
    for target in ("onnxruntime", "openvino"):
        paths[target] = folder / f"{target}.onnx"
        export(record, paths[target], target=target)
    return paths


@pytest.fixture(params=ENGINES)
def path(request, files):
    pytest.importorskip({"native": "dq_kernels"}.get(request.param, request.param))
    return files[request.param]


def feeds_of(seed: int, batch: int = 2):
    return example_inputs(tiny_denoiser(**ONE_LEVEL).call, batch, seed)


@pytest.mark.parametrize("threads", [1, 2])
def test_each_thread_gets_its_own_answer(path, threads):
    feeds = [feeds_of(seed, batch) for seed, batch in enumerate((1, 2, 2, 3))]
    with open_engine(path, threads=threads) as runner:
        want = [runner.run(given)["output"] for given in feeds]
        got: list[list[np.ndarray]] = [[] for _ in feeds]

        def work(index: int) -> None:
            got[index] += [runner.run(feeds[index])["output"] for _ in range(20)]

        workers = [threading.Thread(target=work, args=(index,)) for index in range(len(feeds))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert runner.runs == 21 * len(feeds)
    # looked at only now, that no later run may have changed them
    for answers, expected in zip(got, want, strict=True):
        assert len(answers) == 20
        assert all(np.array_equal(answer, expected) for answer in answers)


def test_a_closed_engine_says_so_and_can_be_closed_again(path):
    runner = open_engine(path, threads=1)
    answer = runner.run(feeds_of(0))["output"].copy()
    kept = runner.run(feeds_of(0))["output"]
    with runner:
        pass
    runner.close()
    np.testing.assert_array_equal(kept, answer)
    calls = [lambda: runner.run(feeds_of(0)), lambda: runner.run({})]
    for name in ("layer_forms", "runtime_graph"):
        calls += [getattr(runner, name)] if hasattr(runner, name) else []
    calls += [lambda: runner.observe(feeds_of(0))] if hasattr(runner, "observe") else []
    for call in calls:
        with pytest.raises(InputError, match="closed"):
            call()
    assert runner.manifest is not None
    assert [spec.name for spec in runner.inputs] == ["sample", "timestep"]


def test_closing_waits_for_runs_and_refuses_later_ones(path):
    runner, feeds, problems = open_engine(path, threads=1), feeds_of(0, 4), []
    want = runner.run(feeds)["output"]

    def work() -> None:
        try:
            while True:
                if not np.array_equal(runner.run(feeds)["output"], want):
                    problems.append("another answer")
        except InputError as error:
            if "closed" not in str(error):
                problems.append(str(error))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    time.sleep(0.1)
    runner.close()
    for worker in workers:
        worker.join(timeout=20)
        assert not worker.is_alive()
    assert problems == []


def child_of(work) -> int:
    """Exit code of a forked child that does the work; 9 where it hangs."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return 9


def test_a_forked_child_runs_and_closes_what_its_parent_opened(path):
    runner, feeds = open_engine(path, threads=2), feeds_of(0)
    want = runner.run(feeds)["output"]

    def work() -> bool:
        same = np.array_equal(runner.run(feeds)["output"], want)
        runner.close()
        return same

    assert child_of(work) == 0
    np.testing.assert_array_equal(runner.run(feeds)["output"], want)
    runner.close()


def test_a_fork_inside_another_threads_turn_does_not_hold_the_child():
    turns, inside, over = Turns("test"), threading.Event(), threading.Event()

    def hold() -> None:
        with turns:
            inside.set()
            over.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait()

    def work() -> bool:
        with turns:
            return turns.forked

    assert child_of(work) == 0
    over.set()
    holder.join()
    assert not turns.forked


def test_a_thread_that_is_inside_enters_again_and_may_close():
    turns = Turns("test")
    with turns, turns:
        assert turns.close()
        assert not turns.close()
        with turns:
            pass
    with pytest.raises(InputError, match=r"the engine is closed \(test\)"), turns:
        pass
