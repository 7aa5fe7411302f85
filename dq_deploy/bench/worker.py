"""One engine in a process of its own, timed on request; memory peaks of engines do not mix."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dq_deploy.bench.clocks import HOST, feeds_for, time_runs
from dq_deploy.bench.gpu_memory import GpuPeak
from dq_deploy.engines.base import Runner
from dq_deploy.engines.capabilities import DeviceRuns
from dq_deploy.errors import DqError, FileProblemError
from dq_deploy.manifest.plan import is_plan, read_plan_manifest
from dq_deploy.open_engine import open_engine
from dq_deploy.processes import (
    Handler,
    Message,
    MessageT,
    Tell,
    WorkerEndedError,
    WorkerError,
    WorkerProcess,
    command_of,
    own_peak_mib,
    serve,
)


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
        attention: likewise.
        watch_gpu: PCI address of the GPU whose memory is watched, in a process that is not timed; None for none.
    """

    path: str
    engine: str | None = None
    threads: int | None = None
    finite_check: bool = True
    isa: str | None = None
    device: str | None = None
    attention: str | None = None
    watch_gpu: str | None = None


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """That the engine is ready: its name, and the ms that took."""

    engine: str
    load_ms: float


@dataclass(frozen=True, kw_only=True)
class TimeRequest:
    """A turn; see `dq_deploy.bench.clocks.time_runs`."""

    batch: int
    warmup: int
    runs: int
    seconds: float
    clock: str
    sizes: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class GpuMemory:
    """GPU memory of a plan in MiB: what the engine says of itself, and the peak with where it was read.

    Attributes:
        weights_mib: size of the engine file.
        activations_mib: what the engine asks for its activations.
        workspace_limit_mib: of the building, or None.
        peak_mib: highest of the device's memory so far, or None.
        peak_source: what gave the peak.
    """

    weights_mib: float
    activations_mib: float
    workspace_limit_mib: float | None
    peak_mib: float | None
    peak_source: str


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What a turn gave.

    Attributes:
        latency_ms: of each run.
        peak_mib: highest resident memory of the process so far.
        finite_check_ms: time of a run spent looking for NaN and infinity.
        gpu_memory: of a plan that is watched.
    """

    latency_ms: tuple[float, ...]
    peak_mib: float
    finite_check_ms: float
    gpu_memory: GpuMemory | None = None


class _Timer:
    """The work of the process: an engine that stays open between turns."""

    def __init__(self) -> None:
        self._runner: Runner | None = None
        self._peak: GpuPeak | None = None

    def open(self, settings: WorkerSettings, _tell: Tell) -> Loaded:
        """Open the engine; the process ends with it."""
        start = time.perf_counter()
        self._runner, self._peak = _opened(settings)
        return Loaded(engine=self._runner.engine, load_ms=(time.perf_counter() - start) * 1e3)

    def time(self, request: TimeRequest, _tell: Tell) -> Timed:
        """One turn."""
        runner = self._runner
        assert runner is not None
        feeds = feeds_for(runner.inputs, request.batch, runner.manifest, request.sizes)
        spent, before = runner.finite_check_ms, runner.runs
        latency_ms = time_runs(
            runner, feeds, warmup=request.warmup, runs=request.runs, seconds=request.seconds, clock=request.clock
        )
        check_ms = (runner.finite_check_ms - spent) / max(1, runner.runs - before)
        return Timed(
            latency_ms=tuple(latency_ms),
            peak_mib=own_peak_mib(),
            finite_check_ms=check_ms,
            gpu_memory=_gpu_memory(runner.device_runs, self._peak) if runner.device_runs and self._peak else None,
        )


def _opened(settings: WorkerSettings) -> tuple[Runner, GpuPeak | None]:
    """The engine; of a plan that is watched also the peak of GPU memory, from before CUDA is started."""
    if not is_plan(settings.path):
        runner = open_engine(
            settings.path,
            engine=settings.engine,
            threads=settings.threads,
            finite_check=settings.finite_check,
            require_manifest=False,
            isa=settings.isa,
            device=settings.device,
            attention=settings.attention,
            hash_check=False,  # whoever starts a worker has checked the file; loading is timed here
        )
        return runner, None
    from dq_deploy.engines.cuda.backends import open_cuda
    from dq_deploy.engines.tensorrt.runner import TensorRtRunner

    path = Path(settings.path)
    manifest = read_plan_manifest(path, check_hash=False)
    peak = None if settings.watch_gpu is None else GpuPeak(settings.watch_gpu).__enter__()
    return TensorRtRunner(path, manifest, cuda=open_cuda(), finite_check=settings.finite_check), peak


def _gpu_memory(plan: DeviceRuns, peak: GpuPeak) -> GpuMemory:
    peak.poll()
    return GpuMemory(**asdict(plan.memory()), peak_mib=peak.peak_mib, peak_source=peak.source)


class Worker(WorkerProcess):
    """The asking side of a worker process; a context manager.

    Attributes:
        engine: name of the engine.
        load_ms: what opening it took.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        """Start the process and wait until the engine is loaded.

        Raises:
            FileProblemError: the engine cannot be opened; the worker's own message.
            DqError: the process failed.
        """
        self.settings = settings
        threads = {} if settings.threads is None else {"OMP_NUM_THREADS": str(settings.threads)}
        super().__init__(command_of(__name__), environment=threads)
        try:
            loaded = self._asked(settings, Loaded)
        except BaseException:
            self.close()
            raise
        self.engine, self.load_ms = loaded.engine, loaded.load_ms

    def time(
        self,
        *,
        batch: int,
        warmup: int,
        runs: int,
        seconds: float,
        clock: str = HOST,
        sizes: Mapping[str, int] | None = None,
    ) -> Timed:
        """One turn: a warm-up, then at least so many runs and seconds.

        Raises:
            FileProblemError: the engine refuses; the worker's own message.
            DqError: the process failed.
        """
        request = TimeRequest(
            batch=batch, warmup=warmup, runs=runs, seconds=seconds, clock=clock, sizes=dict(sizes or {})
        )
        return self._asked(request, Timed)

    def _asked(self, request: Message, result: type[MessageT]) -> MessageT:
        try:
            return self.ask(request, result)
        except WorkerError as error:
            if error.failure.own_error is not None:  # the file is to blame, not the measurement: NaN too
                raise FileProblemError(str(error)) from error
            raise DqError(self._failed(error.failure.last_line)) from error
        except WorkerEndedError as error:
            raise DqError(self._failed(error.ending.last_words)) from error

    def _failed(self, words: str) -> str:
        return f"the timing process of {self.settings.path} failed: {words}; is there enough memory?"


def gpu_memory_alone(
    settings: WorkerSettings, pci_bus_id: str, *, batch: int, clock: str, sizes: Mapping[str, int] | None = None
) -> GpuMemory | None:
    """GPU memory of one engine, in a process of its own that no other one runs beside and that nobody times.

    Args:
        settings: the engine; a plan.
        pci_bus_id: of the GPU.
        batch: samples of the runs.
        clock: how they are launched.
        sizes: of the axes that vary.
    """
    with Worker(replace(settings, watch_gpu=pci_bus_id)) as worker:
        return worker.time(batch=batch, warmup=1, runs=3, seconds=0.0, clock=clock, sizes=sizes).gpu_memory


@contextlib.contextmanager
def workers(settings: Mapping[str, WorkerSettings]) -> Iterator[dict[str, Worker]]:
    """Worker processes by name, all of them loaded, ended when the block is left."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(Worker(value)) for name, value in settings.items()}


if __name__ == "__main__":
    timer = _Timer()
    serve(Handler(WorkerSettings, timer.open), Handler(TimeRequest, timer.time))
