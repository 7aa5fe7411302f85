"""Times of work on a GPU that no Python is in: graphs of many runs, less the same graphs without them.

One launch of a kernel from Python takes 30 to 110 microseconds of the host, more than most kernels take of the GPU; an
event recorded on an idle GPU has passed before the launch arrives. So the runs are captured into one graph, each behind
a flush of the L2 cache, and a graph of the flushes alone is taken off: what starting a graph costs is in both.

Never run on a GPU; tested on a GPU made of two counters (tests/kernels/gpu/tune/test_clock.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, Protocol

REPEATS = 20
"""Runs of one graph."""
ROUNDS = 5
FLUSH_BYTES = 256 << 20
"""More than twice the L2 cache of any GPU so far."""

Launches = Callable[[], Any]
Clock = Callable[[Launches], float]
"""Milliseconds of one run of some work."""


class Timer(Protocol):
    """A GPU that captures and times."""

    def capture(self, work: Launches) -> Launches:
        """Function that enqueues as one graph what the work enqueues; the work has run before."""

    def milliseconds(self, enqueue: Launches) -> float:
        """Of the GPU, from before what is enqueued to behind it."""


class TorchTimer:
    """A GPU through torch, on a stream of its own."""

    def __init__(self, device: Any) -> None:
        """Nothing is enqueued yet.

        Args:
            device: a torch device of type cuda.
        """
        import torch

        self._torch, self._device = torch, device
        self._stream = torch.cuda.Stream(device)

    def capture(self, work: Launches) -> Launches:
        """See `Timer.capture`; the first run, which compiles, is not in the graph."""
        torch = self._torch
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            work()
            self._stream.synchronize()
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                work()
        return lambda: graph.replay()

    def milliseconds(self, enqueue: Launches) -> float:
        """See `Timer.milliseconds`."""
        torch = self._torch
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self._stream):
            start.record()
            enqueue()
            end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def graph_clock(timer: Timer, flush: Launches | None, *, repeats: int = REPEATS, rounds: int = ROUNDS) -> Clock:
    """A clock of single runs.

    Args:
        timer: the GPU.
        flush: evicts the L2 cache; None times runs whose arrays stay there.
        repeats: runs of one graph.
        rounds: graphs; the median counts.
    """

    def many(work: Launches | None) -> Launches:
        def run() -> None:
            for _ in range(repeats):
                if flush is not None:
                    flush()
                if work is not None:
                    work()

        return run

    empty = None if flush is None else timer.capture(many(None))

    def clock(work: Launches) -> float:
        full = timer.capture(many(work))
        full()  # clocks go up
        spent = []
        for _ in range(rounds):
            without = 0.0 if empty is None else timer.milliseconds(empty)
            spent.append((timer.milliseconds(full) - without) / repeats)
        return statistics.median(spent)

    return clock


def torch_clock(device: Any, *, cold: bool = True, repeats: int = REPEATS) -> Clock:
    """The clock of a GPU of torch.

    Args:
        device: a torch device of type cuda.
        cold: evict the L2 cache before each run.
        repeats: runs of one graph.
    """
    import torch

    scrap = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if cold else None
    return graph_clock(TorchTimer(device), None if scrap is None else scrap.zero_, repeats=repeats)
