"""Both GPU libraries on a stand-in for libcuda: order, threads, lifetimes and leaks. It proves no result of a GPU."""

from __future__ import annotations

import pytest

from tests.engines.cuda.standin.driver import has, play

SCENES = (
    "work_is_late",
    "faults_are_seen",
    "all_is_given_back",
    "free_waits_for_the_device",
    "threads_use_and_end",
    "capture_bears_other_threads",
    "failed_capture_leaves_the_stream",
    "too_much_memory_is_one_line",
    "workspace_orders_runs",
    "workspace_holds_threads",
    "events_take_the_time",
)
PRODUCERS = ("version 2", "no stream", "a stream", "the default stream")


@pytest.fixture(params=["cuda-core", "pycuda"])
def backend(request):
    if not has(request.param):
        pytest.skip(f"needs {request.param}")
    return request.param


def played(scene, *words):
    done = play(scene, *words)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("scene", SCENES)
def test_the_backend_keeps_order_threads_and_lifetimes(backend, scene):
    played(scene, backend)


@pytest.mark.parametrize("said", PRODUCERS)
def test_the_work_that_writes_an_array_is_waited_for(backend, said):
    played("producers_are_waited_for", backend, said)


def test_a_programs_own_pycuda_context_is_kept():
    if not has("pycuda"):
        pytest.skip("needs pycuda")
    played("users_context_is_kept", "pycuda")


def test_compiled_kernels_are_loaded_once_and_unloaded(backend, tmp_path):
    pytest.importorskip("triton")
    from dq_kernels.gpu.ahead_of_time.compile import compile_call, store

    from tests.engines.cuda.standin.kernel_call import call_at

    store([compile_call(call_at(256), 80)], tmp_path)
    played("cubins", backend, str(tmp_path))
