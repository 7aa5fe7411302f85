"""Times of a GPU are the GPU's own, whatever Python takes: on a GPU made of two counters, in microseconds."""

from __future__ import annotations

import pytest
from dq_kernels.gpu.tune.clock import graph_clock

FLUSH_US = 65.0
GRAPH_START_US = 9.0


class CountedGpu:
    """Host and device clocks; a launch costs the host, the device starts when it has arrived."""

    def __init__(self, python_us: float) -> None:
        self.python_us = python_us
        self.host = self.device = 0.0
        self.recording: list[float] | None = None
        self.resident = False

    def launch(self, us: float) -> None:
        if self.recording is not None:
            self.recording.append(us)
            return
        self.host += self.python_us
        self.device = max(self.device, self.host) + us

    def kernel(self, cold_us: float, warm_us: float):
        def run() -> None:
            self.launch(warm_us if self.resident else cold_us)
            self.resident = True

        return run

    def flush(self) -> None:
        self.launch(FLUSH_US)
        self.resident = False

    def capture(self, work):
        work()
        self.recording = []
        work()
        total, self.recording = sum(self.recording), None
        return lambda: self.launch(GRAPH_START_US + total)

    def milliseconds(self, enqueue) -> float:
        start = self.device = max(self.device, self.host)  # the event passes at once on an idle GPU
        enqueue()
        self.host = max(self.host, self.device)
        return (self.device - start) / 1e3


@pytest.mark.parametrize("python_us", [5.0, 64.0, 109.0])
@pytest.mark.parametrize("us", [3.0, 40.0, 900.0])
def test_a_kernel_takes_what_the_gpu_takes(us, python_us):
    gpu = CountedGpu(python_us)
    clock = graph_clock(gpu, gpu.flush)
    assert clock(gpu.kernel(us, us)) * 1e3 == pytest.approx(us, rel=0.01)


def test_events_around_a_single_launch_count_python():
    """What the clock is for: the flush hides 65 microseconds of Python, and no more."""
    gpu = CountedGpu(109.0)

    def flushed_events() -> float:
        gpu.flush()
        return gpu.milliseconds(gpu.kernel(3.0, 3.0)) * 1e3

    assert flushed_events() > 40


def test_the_cache_is_cold_or_warm_as_asked():
    gpu = CountedGpu(30.0)
    assert graph_clock(gpu, gpu.flush)(gpu.kernel(20.0, 8.0)) * 1e3 == pytest.approx(20, rel=0.01)
    warm = graph_clock(gpu, None, repeats=1000)(gpu.kernel(20.0, 8.0)) * 1e3
    assert warm == pytest.approx(8, rel=0.02)
