"""What is played on the stand-in for libcuda: `python -m tests.engines.cuda.standin.scenes NAME WORDS`.

Each scene is a function that asserts; its words are the backend's name and whatever else a test gives.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from tests.engines.cuda.standin.driver import StandIn

FLOAT = np.dtype(np.float32)
COUNT = 256
NBYTES = COUNT * 4


def opened(backend):
    from dq_deploy.engines.cuda.backends import open_cuda

    return open_cuda(backend), StandIn()


def filled(cuda, value, stream):
    """A device buffer of one value, its copy still under way, and the pinned memory it comes from."""
    pinned = cuda.allocate_pinned(NBYTES)
    pinned.array((COUNT,), FLOAT)[:] = value
    buffer = cuda.allocate(NBYTES)
    cuda.copy_to_device(buffer.pointer, pinned.array((COUNT,), FLOAT), stream)
    return buffer, pinned


def value_of(cuda, pointer, stream):
    """First value behind a pointer, when the stream has come so far."""
    found = np.zeros(COUNT, FLOAT)
    cuda.copy_to_host(found, pointer, stream)
    stream.synchronize()
    return float(found[0])


def work_is_late(backend):
    """The stand-in itself: nothing is done before somebody waits, so that a missing wait shows."""
    cuda, seen = opened(backend)
    first, second = cuda.create_stream(), cuda.create_stream()
    buffer, _pinned = filled(cuda, 3, first)
    assert value_of(cuda, buffer.pointer, second) != 3
    event = cuda.create_event()
    event.record(first)
    second.wait(event)
    assert value_of(cuda, buffer.pointer, second) == 3
    assert not seen.faults


def faults_are_seen(backend):
    """The stand-in itself: memory that is used after it was freed, and a second end of it."""
    cuda, seen = opened(backend)
    stream = cuda.create_stream()
    buffer, _pinned = filled(cuda, 3, stream)
    stream.synchronize()
    buffer.free()
    value_of(cuda, buffer.pointer, stream)
    assert seen.faults == [f"a copy touches {NBYTES} bytes of freed memory"]
    seen.forget()
    cuda.copy_on_device(cuda.allocate(16).pointer, cuda.allocate(16).pointer, 32, stream)
    stream.synchronize()
    assert seen.faults == ["a copy reaches 16 bytes past the end"] * 2


def all_is_given_back(backend):
    """Buffers, pinned memory, streams, events and graphs: none is left, and no pool keeps memory."""
    cuda, seen = opened(backend)
    before = {kind: seen.live(kind) for kind in ("device", "pinned", "streams", "events", "graphs")}
    free = cuda.facts().free_bytes
    stream = cuda.create_stream()
    buffer, pinned = filled(cuda, 3, stream)
    event = cuda.create_event()
    event.record(stream)

    def work(handle):
        cuda.copy_on_device(buffer.pointer, buffer.pointer, 4, cuda.wrap_stream(handle))

    graph = cuda.capture(work, stream)
    graph.launch(stream)
    stream.synchronize()
    graph.close()
    for memory in (buffer, pinned):
        memory.free()
    del graph, event, stream
    gc.collect()
    assert {kind: seen.live(kind) for kind in before} == before
    assert cuda.facts().free_bytes == free
    assert seen.pool_bytes == 0
    assert not seen.faults


def free_waits_for_the_device(backend):
    """A buffer is given back while a copy that reads it is under way."""
    cuda, seen = opened(backend)
    stream = cuda.create_stream()
    buffer, _pinned = filled(cuda, 3, stream)
    other = cuda.allocate(NBYTES)
    cuda.copy_on_device(other.pointer, buffer.pointer, NBYTES, stream)
    buffer.free()
    assert value_of(cuda, other.pointer, stream) == 3
    assert not seen.faults


def threads_use_and_end(backend):
    """Another thread allocates, copies, captures and gives back; nothing of it is on its stack that may not end so."""
    cuda, seen = opened(backend)
    found = []

    def work():
        cuda.activate()
        stream = cuda.create_stream()
        buffer, pinned = filled(cuda, 5, stream)
        found.append(value_of(cuda, buffer.pointer, stream))
        buffer.free()
        pinned.free()

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    kept, _pinned = filled(cuda, 7, cuda.create_stream())
    ender = threading.Thread(target=kept.free)  # a thread that never called activate
    ender.start()
    ender.join()
    assert found == [5, 5]
    assert seen.live("device") == 0
    assert not seen.faults


def users_context_is_kept(backend):
    """A program's own pycuda context: used, in other threads too, and left as it was."""
    import pycuda.driver as driver

    driver.init()
    context = driver.Device(0).make_context()
    try:
        threads_use_and_end(backend)
        assert driver.Context.get_current().handle == context.handle
        assert driver.mem_alloc(64)  # the program's own arrays go on
    finally:
        context.pop()


def capture_bears_other_threads(backend):
    """Memory is allocated by another thread while this one captures: a server has several engines."""
    cuda, seen = opened(backend)
    stream = cuda.create_stream()
    buffer, _pinned = filled(cuda, 3, stream)
    target = cuda.allocate(NBYTES)
    stream.synchronize()
    got = []

    def allocate():
        cuda.activate()
        got.append(cuda.allocate(64))

    def work(handle):
        other = threading.Thread(target=allocate)
        other.start()
        other.join()
        cuda.copy_on_device(target.pointer, buffer.pointer, NBYTES, cuda.wrap_stream(handle))

    graph = cuda.capture(work, stream)
    graph.launch(stream)
    assert value_of(cuda, target.pointer, stream) == 3
    assert len(got) == 1
    assert not seen.faults
    assert "capture begins in mode 1" in seen.journal


def failed_capture_leaves_the_stream(backend):
    """What is raised inside a capture comes out, and the stream works on."""
    cuda, seen = opened(backend)
    stream = cuda.create_stream()

    def work(handle):
        raise KeyError("mine")

    with pytest.raises(KeyError):
        cuda.capture(work, stream)
    buffer, _pinned = filled(cuda, 3, stream)
    assert value_of(cuda, buffer.pointer, stream) == 3
    assert seen.live("graphs") == 0
    assert not seen.faults


def too_much_memory_is_one_line(backend):
    from dq_deploy.engines.cuda.interface import DeviceMemoryError

    cuda, _seen = opened(backend)
    with pytest.raises(DeviceMemoryError, match="MiB free") as caught:
        cuda.allocate(1 << 40)
    assert "\n" not in str(caught.value)


def workspace_orders_runs(backend):
    """Two runs on two streams in one workspace, the second on a stream whose handle the first one's had."""
    from dq_deploy.engines.cuda.interface import SharedWorkspace

    cuda, seen = opened(backend)
    with SharedWorkspace(cuda) as workspace:
        workspace.reserve(NBYTES)
        first = cuda.create_stream()
        handle = first.handle
        source, _pinned = filled(cuda, 3, first)
        with workspace.turn(first):
            cuda.copy_on_device(workspace.pointer, source.pointer, NBYTES, first)
        del first
        gc.collect()
        second = cuda.create_stream()
        assert second.handle == handle  # the driver gives it again
        with workspace.turn(second):
            assert value_of(cuda, workspace.pointer, second) == 3
    assert not seen.faults


def workspace_holds_threads(backend):
    """A thread that wants a turn, or more memory, comes behind the turn that is under way."""
    from dq_deploy.engines.cuda.interface import SharedWorkspace

    cuda, seen = opened(backend)
    order = []
    with SharedWorkspace(cuda) as workspace:
        workspace.reserve(NBYTES)
        own = cuda.create_stream()

        def other():
            cuda.activate()
            stream = cuda.create_stream()
            workspace.reserve(2 * NBYTES)
            order.append("grown")
            with workspace.turn(stream):
                order.append("second")

        thread = threading.Thread(target=other)
        with workspace.turn(own):
            thread.start()
            thread.join(0.2)
            assert order == []
            cuda.copy_on_device(workspace.pointer, workspace.pointer, 4, own)
            order.append("first")
        thread.join()
    assert order == ["first", "grown", "second"]
    assert not seen.faults


def foreign_array(pointer, **said):
    interface = {"shape": (COUNT,), "typestr": "<f4", "data": (pointer, False), "strides": None, **said}
    return SimpleNamespace(__cuda_array_interface__=interface)


def producers_are_waited_for(backend, said):
    """An array whose producer is still at work: of interface version 2, or one that names its stream, or none."""
    from dq_deploy.engines.cuda.arrays import device_array_of
    from dq_deploy.engines.tensorrt.runner import TensorRtRunner

    cuda, seen = opened(backend)
    producer, reader = cuda.create_stream(), cuda.create_stream()
    buffer, _pinned = filled(cuda, 3, producer)
    words = {
        "version 2": {"version": 2},
        "no stream": {"version": 3, "stream": None},
        "a stream": {"version": 3, "stream": producer.handle},
        "the default stream": {"version": 3, "stream": 1},
    }[said]
    if said == "the default stream":
        cuda.copy_to_device(buffer.pointer, _pinned.array((COUNT,), FLOAT), cuda.wrap_stream(1))
    array = device_array_of(foreign_array(buffer.pointer, **words), name="sample", stream=reader.handle)
    runner = SimpleNamespace(cuda=cuda)
    TensorRtRunner._wait_for_producers(runner, {"sample": array}, reader)
    assert value_of(cuda, array.pointer, reader) == 3
    assert not seen.faults


def events_take_the_time(backend):
    cuda, seen = opened(backend)
    stream = cuda.create_stream()
    start, end = cuda.create_event(), cuda.create_event()
    start.record(stream)
    filled(cuda, 3, stream)
    end.record(stream)
    end.synchronize()
    assert end.elapsed_ms(start) > 0
    assert not seen.faults


def cubins(backend, folder):
    """Compiled kernels: loaded once, in the context that is current, launched in the stream's order, unloaded."""
    from pathlib import Path

    from dq_kernels.gpu.ahead_of_time.cubins import CubinStore, Driver

    from tests.engines.cuda.standin.kernel_call import call_at

    cuda, seen = opened(backend)
    stream = cuda.create_stream()
    buffer, _pinned = filled(cuda, 3, stream)
    store = CubinStore(Path(folder), 80, Driver())
    call = call_at(buffer.pointer)
    store.load([call])
    seen.touch(buffer.pointer)
    graph = cuda.capture(lambda handle: store.launch(call, handle), stream)  # loading inside would break it
    graph.launch(stream)
    store.launch(call, stream.handle)
    assert seen.live("modules") == 1
    stream.synchronize()
    assert len([line for line in seen.journal if line.startswith("launch quantize_kernel grid")]) == 2
    graph.close()
    store.close()
    assert seen.live("modules") == 0
    assert not seen.faults
    seen.touch(buffer.pointer)
    store.launch(call, stream.handle)  # loaded again
    buffer.free()
    assert not seen.faults, "giving memory back waits for the kernel"


if __name__ == "__main__":
    sys.setdlopenflags(os.RTLD_LAZY)  # the stand-in has the calls that are made, not all that pycuda could make
    globals()[sys.argv[1]](*sys.argv[2:])
