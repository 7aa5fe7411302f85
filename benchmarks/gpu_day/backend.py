"""Copies, launches of a graph, and memory of one GPU library: `python -m benchmarks.gpu_day.backend cuda-core`."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

NBYTES = 64 << 20
LAUNCHES = 1000


def measured(name: str) -> dict[str, Any]:
    """GB/s of pinned copies, microseconds of a graph's launch on the host, bytes that stay after all is freed."""
    from dq_deploy.engines.cuda.backends import open_cuda

    cuda = open_cuda(name)
    free, stream = cuda.facts().free_bytes, cuda.create_stream()
    pinned, buffer, other = cuda.allocate_pinned(NBYTES), cuda.allocate(NBYTES), cuda.allocate(NBYTES)
    host = pinned.array((NBYTES,), np.dtype(np.uint8))
    host[:] = np.random.default_rng(0).integers(0, 256, NBYTES, dtype=np.uint8)
    start, end = cuda.create_event(), cuda.create_event()

    def rate(copy: Any) -> float:
        copy()
        start.record(stream)
        copy()
        end.record(stream)
        end.synchronize()
        return NBYTES / end.elapsed_ms(start) / 1e6

    rates = {
        "to_device": rate(lambda: cuda.copy_to_device(buffer.pointer, host, stream)),
        "on_device": rate(lambda: cuda.copy_on_device(other.pointer, buffer.pointer, NBYTES, stream)),
    }
    found = np.zeros_like(host)
    cuda.copy_to_host(found, other.pointer, stream)
    stream.synchronize()

    def work(handle: int) -> None:
        cuda.copy_on_device(other.pointer, buffer.pointer, 256, cuda.wrap_stream(handle))

    graph = cuda.capture(work, stream)
    graph.launch(stream)
    stream.synchronize()
    began = time.perf_counter()
    for _ in range(LAUNCHES):
        graph.launch(stream)
    launch_us = (time.perf_counter() - began) / LAUNCHES * 1e6
    stream.synchronize()
    graph.close()
    for memory in (buffer, other, pinned):
        memory.free()
    return {
        "right": bool(np.array_equal(found, host)),
        "gb_s": rates,
        "graph_launch_us": launch_us,
        "bytes_kept": free - cuda.facts().free_bytes,
    }


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1])))
