"""One engine in a process of its own, timed on request; memory peaks of engines do not mix.

The process reads one JSON request a line on stdin and answers one JSON line on stdout::

    {"batch": 4, "warmup": 3, "runs": 10, "seconds": 0.3}
    {"latency_ms": [...], "peak_mib": 210.4, "finite_check_ms": 0.02}

The first line it writes says that the engine is loaded. End of input ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from dq_deploy.engines import open_engine
from dq_deploy.engines.base import Runner, TensorSpec
from dq_deploy.errors import DqError, FileProblemError


def peak_mib() -> float:
    """Highest resident memory of this process so far, in MiB.

    getrusage is no good here: its peak survives exec, so a child starts with its parent's.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key == "VmHWM":
            return int(value.split()[0]) / 1024
    raise DqError("/proc/self/status has no VmHWM, expected Linux; memory cannot be measured here")


def feeds_for(
    inputs: tuple[TensorSpec, ...], batch: int, manifest: Mapping[str, Any] | None
) -> dict[str, NDArray[np.generic]]:
    """Random inputs of one batch: noise, one common timestep, labels that every model has.

    Args:
        inputs: specifications of the engine; a free dimension becomes the batch.
        batch: samples.
        manifest: gives a calibrated timestep, or None.
    """
    rng = np.random.default_rng(0)
    timesteps = manifest["timesteps"] if manifest else [500.0]
    feeds: dict[str, NDArray[np.generic]] = {}
    for spec in inputs:
        shape = tuple(batch if isinstance(d, str) else d for d in spec.shape)
        if spec.name == "timestep":
            feeds[spec.name] = np.full(shape, timesteps[len(timesteps) // 2], spec.dtype)
        elif spec.dtype.kind == "f":
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        else:
            feeds[spec.name] = np.zeros(shape, spec.dtype)
    return feeds


def time_runs(
    runner: Runner, feeds: Mapping[str, NDArray[np.generic]], *, warmup: int, runs: int, seconds: float
) -> list[float]:
    """Latency of each run in ms: at least `runs` runs and about `seconds`, after `warmup` uncounted ones."""
    for _ in range(warmup):
        runner.run(feeds)
    latency_ms: list[float] = []
    began = time.perf_counter()
    while len(latency_ms) < runs or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        runner.run(feeds)
        latency_ms.append((time.perf_counter() - start) * 1e3)
    return latency_ms


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What a worker opens.

    Attributes:
        path: engine file.
        engine: `onnxruntime` or `openvino`, or None for what the manifest says.
        threads: threads of one run, or None.
        finite_check: whether the Runner looks for NaN and infinity.
    """

    path: str
    engine: str | None = None
    threads: int | None = None
    finite_check: bool = True


def serve(settings: WorkerSettings, requests: IO[str], answers: IO[str]) -> None:
    """Open the engine and answer requests until the input ends."""

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    with open_engine(
        settings.path,
        engine=settings.engine,
        threads=settings.threads,
        finite_check=settings.finite_check,
        require_manifest=False,
    ) as runner:
        answer({"engine": runner.engine})
        for line in requests:
            request = json.loads(line)
            feeds = feeds_for(runner.inputs, request["batch"], runner.manifest)
            spent, before = runner.finite_check_ms, runner.runs
            counts = {key: request[key] for key in ("warmup", "runs", "seconds")}
            latency_ms = time_runs(runner, feeds, **counts)
            check_ms = (runner.finite_check_ms - spent) / (runner.runs - before)
            answer({"latency_ms": latency_ms, "peak_mib": peak_mib(), "finite_check_ms": check_ms})


class Worker:
    """The asking side of a worker process; a context manager."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Start the process and wait until the engine is loaded.

        Raises:
            DqError: the engine cannot be opened; the worker's own message.
        """
        self.settings = settings
        arguments = json.dumps(vars(settings))
        # a file, not a pipe: nobody reads it while the worker runs
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        environment = {**os.environ}
        if settings.threads is not None:
            environment["OMP_NUM_THREADS"] = str(settings.threads)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dq_deploy.bench.worker", arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        try:
            self.engine = str(self._answer()["engine"])
        except BaseException:
            self.close()
            raise

    def time(self, *, batch: int, warmup: int, runs: int, seconds: float) -> dict[str, Any]:
        """Latencies in ms, the memory peak so far in MiB, and the cost of the finite check in ms a run."""
        assert self._process.stdin is not None
        request = {"batch": batch, "warmup": warmup, "runs": runs, "seconds": seconds}
        with contextlib.suppress(BrokenPipeError):  # its end is reported below
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return dict(json.loads(line))
        code = self._process.wait()
        self._log.seek(0)
        last = (self._log.read().strip().splitlines() or [f"ended with code {code}"])[-1]
        message = last.removeprefix("error: ")
        if message == last:
            raise DqError(f"the timing process of {self.settings.path} failed: {last}; is there enough memory?")
        raise FileProblemError(message)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self) -> Self:
        """The worker itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.close()


@contextlib.contextmanager
def workers(settings: Mapping[str, WorkerSettings]) -> Iterator[dict[str, Worker]]:
    """Worker processes by name, all of them loaded, ended when the block is left."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(Worker(value)) for name, value in settings.items()}


def main() -> None:
    """Entry of the worker process: the settings are the one argument, as JSON."""
    try:
        serve(WorkerSettings(**json.loads(sys.argv[1])), sys.stdin, sys.stdout)
    except DqError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
