"""One engine in a process of its own, timed on request; memory peaks of engines do not mix.

The process reads one JSON request a line on stdin and answers one JSON line on stdout::

    {"batch": 4, "warmup": 3, "runs": 10, "seconds": 0.3, "clock": "host"}
    {"latency_ms": [...], "peak_mib": 210.4, "finite_check_ms": 0.02}

The answer of a plan has its GPU memory too. The first line it writes says that the engine is loaded, and how long that
took. End of input ends it.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from dq_deploy.bench.clocks import HOST, feeds_for, time_runs
from dq_deploy.bench.gpu_memory import GpuPeak
from dq_deploy.engines.base import Runner
from dq_deploy.errors import DqError, FileProblemError
from dq_deploy.manifest.plan import is_plan, read_plan_manifest
from dq_deploy.open_engine import open_engine


def peak_mib() -> float:
    """Highest resident memory of this process so far, in MiB.

    getrusage is no good here: its peak survives exec, so a child starts with its parent's.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key == "VmHWM":
            return int(value.split()[0]) / 1024
    raise DqError("/proc/self/status has no VmHWM, expected Linux; memory cannot be measured here")


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What a worker opens.

    Attributes:
        path: engine file: ONNX, plan or record.
        engine: one of `dq_deploy.open_engine.ENGINES`, or None for what the manifest says.
        threads: threads of one run, or None.
        finite_check: whether the Runner looks for NaN and infinity.
        isa: instruction set of the native engine, or None.
        device: likewise.
    """

    path: str
    engine: str | None = None
    threads: int | None = None
    finite_check: bool = True
    isa: str | None = None
    device: str | None = None


def serve(settings: WorkerSettings, requests: IO[str], answers: IO[str]) -> None:
    """Open the engine and answer requests until the input ends."""

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        runner, peak = _opened(settings, stack)
        answer({"engine": runner.engine, "load_ms": (time.perf_counter() - start) * 1e3})
        for line in requests:
            request = json.loads(line)
            feeds = feeds_for(runner.inputs, request["batch"], runner.manifest)
            spent, before = runner.finite_check_ms, runner.runs
            counts = {key: request[key] for key in ("warmup", "runs", "seconds", "clock")}
            latency_ms = time_runs(runner, feeds, **counts)
            check_ms = (runner.finite_check_ms - spent) / max(1, runner.runs - before)
            values = {"latency_ms": latency_ms, "peak_mib": peak_mib(), "finite_check_ms": check_ms}
            answer(values | ({} if peak is None else {"gpu_memory": _gpu_memory(runner, peak)}))


def _opened(settings: WorkerSettings, stack: contextlib.ExitStack) -> tuple[Runner, GpuPeak | None]:
    """The engine; of a plan also the peak of GPU memory, watched from before it is loaded."""
    if not is_plan(settings.path):
        runner = open_engine(
            settings.path,
            engine=settings.engine,
            threads=settings.threads,
            finite_check=settings.finite_check,
            require_manifest=False,
            isa=settings.isa,
            device=settings.device,
            hash_check=False,  # whoever starts a worker has checked the file; loading is timed here
        )
        return stack.enter_context(runner), None
    from dq_deploy.engines.cuda.backends import open_cuda
    from dq_deploy.engines.tensorrt.runner import TensorRtRunner

    path = Path(settings.path)
    manifest = read_plan_manifest(path, check_hash=False)
    cuda = open_cuda()
    peak = stack.enter_context(GpuPeak(cuda.facts().pci_bus_id))
    plan = TensorRtRunner(path, manifest, cuda=cuda, finite_check=settings.finite_check)
    return stack.enter_context(plan), peak


def _gpu_memory(runner: Any, peak: GpuPeak) -> dict[str, Any]:
    peak.poll()
    return {**asdict(runner.memory()), "peak_mib": peak.peak_mib, "peak_source": peak.source}


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
            loaded = self._answer()
        except BaseException:
            self.close()
            raise
        self.engine, self.load_ms = str(loaded["engine"]), float(loaded["load_ms"])

    def time(self, *, batch: int, warmup: int, runs: int, seconds: float, clock: str = HOST) -> dict[str, Any]:
        """Latencies in ms, the memory peak so far in MiB, and the cost of the finite check in ms a run."""
        assert self._process.stdin is not None
        request = {"batch": batch, "warmup": warmup, "runs": runs, "seconds": seconds, "clock": clock}
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
