"""How one run of an engine is timed: on the host for every engine, by CUDA events for a plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from dq_deploy.engines.base import Runner, TensorSpec
from dq_deploy.engines.capabilities import DeviceRuns
from dq_deploy.errors import OptionError
from dq_deploy.manifest.values import EngineManifest, PlanManifest
from dq_deploy.record import BATCH

HOST = "host"
CUDA_GRAPH = "cuda-graph"
CUDA = "cuda"
CLOCKS = {
    HOST: "numpy arrays in and out, by the host's clock",
    CUDA_GRAPH: "device memory in and out, one CUDA graph, by CUDA events",
    CUDA: "device memory in and out, kernels launched one by one, by CUDA events",
}
PLAN_CLOCKS = (CUDA_GRAPH, CUDA, HOST)
"""Those of a plan; the first is the one that speedup and throughput are given for."""

TURN_MS = 10.0
"""Milliseconds of GPU work of one time, by which Python has long gone ahead."""
MOST_RUNS = 100

Feeds = Mapping[str, NDArray[np.generic]]


def feeds_for(
    inputs: tuple[TensorSpec, ...],
    batch: int,
    manifest: EngineManifest | None,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, NDArray[np.generic]]:
    """Random inputs of one batch: noise, one common timestep, the lowest labels, masks that hide nothing.

    Args:
        inputs: specifications of the engine; a free first dimension that is no other size becomes the batch.
        batch: samples.
        manifest: gives a calibrated timestep, and of a plan the best size of other free dimensions; or None.
        sizes: of the axes that vary, by name; the manifest's where they are not given.
    """
    rng = np.random.default_rng(0)
    timesteps = (500.0,) if manifest is None else manifest.timesteps
    profile = manifest.profiles[0] if isinstance(manifest, PlanManifest) else {}
    usual = {} if manifest is None else manifest.sizes or {}
    asked = {**({} if profile else usual), **(sizes or {}), BATCH: batch}
    entries = () if manifest is None else manifest.inputs
    lowest = {entry.name: entry.limits[0] for entry in entries if entry.limits is not None}
    feeds: dict[str, NDArray[np.generic]] = {}
    for spec in inputs:
        best = profile[spec.name].opt if spec.name in profile else (batch,) * len(spec.shape)
        shape = tuple(
            size if isinstance(size, int) else asked.get(size, batch if i == 0 else best[i])
            for i, size in enumerate(spec.shape)
        )
        if spec.name == "timestep":
            feeds[spec.name] = np.full(shape, timesteps[len(timesteps) // 2], spec.dtype)
        elif spec.name.endswith("mask"):
            feeds[spec.name] = np.ones(shape, spec.dtype)
        elif spec.dtype.kind in "iub":
            feeds[spec.name] = np.full(shape, lowest.get(spec.name, 0), spec.dtype)
        else:
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    return feeds


def latencies_ms(run: Callable[[], float], *, warmup: int, runs: int, seconds: float) -> list[float]:
    """What each call gives: at least `runs` calls and about `seconds`, after `warmup` uncounted ones.

    Args:
        run: runs the engine once and returns how long that took, in ms.
        warmup: calls before the first that counts.
        runs: least number of calls.
        seconds: of the host's clock.
    """
    for _ in range(warmup):
        run()
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < runs or time.perf_counter() - began < seconds:
        found.append(run())
    return found


def time_runs(
    runner: Runner, feeds: Feeds, *, warmup: int, runs: int, seconds: float, clock: str = HOST
) -> list[float]:
    """Latency of each run in ms; see `latencies_ms`.

    Args:
        runner: the engine.
        feeds: inputs.
        warmup: runs that are not counted.
        runs: least number of runs.
        seconds: a round goes on for about as long.
        clock: one of `CLOCKS`; those of CUDA need a plan.

    Raises:
        OptionError: a clock that does not exist, or that the engine does not have.
    """
    if clock not in CLOCKS:
        raise OptionError(f"clock is {clock!r}, expected one of {', '.join(CLOCKS)}")
    if clock == HOST:
        run = _on_host(runner, feeds)
    elif runner.device_runs is not None:
        run = _on_device(runner.device_runs, feeds, cuda_graph=clock == CUDA_GRAPH)
    else:
        raise OptionError(f"clock is {clock!r}, expected {HOST} for {runner.engine}, which runs on the CPU")
    return latencies_ms(run, warmup=warmup, runs=runs, seconds=seconds)


def _on_host(runner: Runner, feeds: Feeds) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        runner.run(feeds)
        return (time.perf_counter() - start) * 1e3

    return run


def _on_device(runner: DeviceRuns, feeds: Feeds, *, cuda_graph: bool) -> Callable[[], float]:
    """Inputs are copied once; a time is that of one run of several that follow each other without a gap.

    An event on an idle GPU has passed before Python has launched anything, so Python's time would count. Here a run is
    enqueued in front of the first event, and so many between the two that the GPU has work while Python goes on.
    """
    placed = runner.place(feeds)
    start, end = runner.cuda.create_event(), runner.cuda.create_event()

    def turn(runs: int) -> float:
        runner.run_device(placed, stream=runner.stream, cuda_graph=cuda_graph)
        start.record(runner.stream)
        for _ in range(runs):
            runner.run_device(placed, stream=runner.stream, cuda_graph=cuda_graph)
        end.record(runner.stream)
        end.synchronize()
        return end.elapsed_ms(start) / runs

    runs = 0

    def run() -> float:
        nonlocal runs
        if not runs:  # the first calls compile and capture
            turn(1)
            runs = min(MOST_RUNS, max(1, round(TURN_MS / max(turn(2), 1e-3))))
        return turn(runs)

    return run
