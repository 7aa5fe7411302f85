"""The harness behind `dq-bench`: engines take turns, round by round, each in its own process."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.artifacts import with_files_beside
from dq_deploy.bench.clocks import HOST, PLAN_CLOCKS
from dq_deploy.bench.environment import describe_environment
from dq_deploy.bench.native_baseline import native_facts, of_native_engine, worker_settings
from dq_deploy.bench.options import BenchOptions
from dq_deploy.bench.plan_baseline import check_batches, float_plan
from dq_deploy.bench.worker import GpuMemory, Worker, WorkerSettings, gpu_memory_alone, workers
from dq_deploy.engines.base import Runner
from dq_deploy.errors import FileProblemError, OptionError
from dq_deploy.manifest.plan import is_plan
from dq_deploy.manifest.values import EngineManifest, PlanManifest
from dq_deploy.open_engine import NATIVE_SUFFIXES, open_engine
from dq_deploy.record import content_sha256
from dq_deploy.targets.manifest import call_of_manifest

if TYPE_CHECKING:
    from dq_deploy.record import Record

MIN_BASELINE_ROUNDS = 7
FORMAT = "dq_deploy.bench"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Percentiles of a latency in ms."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round: the engine, then the baseline, in ms at the median; the ratio is baseline over engine."""

    p50_ms: float
    baseline_p50_ms: float | None = None
    ratio: float | None = None


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """One batch size: median latency in ms and images a second."""

    batch: int
    p50_ms: float
    images_per_s: float
    baseline_p50_ms: float | None = None
    baseline_images_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One clock of `dq_deploy.bench.clocks`: percentiles in ms and the ratio of the medians, baseline over engine."""

    latency_ms: Latency
    baseline_latency_ms: Latency | None = None
    speedup: float | None = None


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """What was measured; `to_json` has the documented keys.

    Attributes:
        engine: engine it ran on, as `onnxruntime`.
        engine_path: path of the engine file.
        target: target in the manifest, or None.
        mode: mode in the manifest, or None.
        batch: the batch size that latency, speedup and memory are given for.
        latency_ms: latency over all timed runs of that batch.
        baseline_latency_ms: latency of the float graph from the same trace, or None.
        speedup: ratio of the medians, baseline over engine, or None.
        rounds: medians of each round.
        batches: medians and throughput of each batch size.
        peak_mib: highest resident memory of the engine's process at that batch, interpreter included.
        baseline_peak_mib: the same of the baseline's process, or None.
        file_mib: size of the engine file with its external data.
        baseline_file_mib: size of the baseline's file, or None.
        finite_check_ms: time of a run spent looking for NaN and infinity, contained in the latency.
        load_ms: time from a started process to an engine that is ready, importing libraries included.
        baseline_load_ms: the same of the baseline, or None.
        integer_mac_share: share of all MACs that run in integers, where it was attested.
        environment: machine and versions; of a plan also the `gpu`, of the native engine `native`: its instruction set,
            threads, and number of layer parts by kernel and form.
        options: options of the measurement.
        clock: how latency, speedup, rounds and throughput were timed.
        timings: of a plan, each clock at the first batch size; None for other engines.
        gpu_memory: of a plan, in MiB: `weights_mib`, `activations_mib`, `workspace_limit_mib` of the engine and
            `peak_mib` from NVML with its `peak_source`, for `engine` and `baseline`; None for other engines.
    """

    engine: str
    engine_path: str
    target: str | None
    mode: str | None
    batch: int
    latency_ms: Latency
    baseline_latency_ms: Latency | None
    speedup: float | None
    rounds: tuple[Round, ...]
    batches: tuple[BatchResult, ...]
    peak_mib: float
    baseline_peak_mib: float | None
    file_mib: float
    baseline_file_mib: float | None
    finite_check_ms: float
    load_ms: float
    baseline_load_ms: float | None
    integer_mac_share: float | None
    environment: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    clock: str = HOST
    timings: dict[str, Timing] | None = None
    gpu_memory: dict[str, GpuMemory] | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values; the per-round ratios come once more as a list of their own, keys of a plan only for a plan."""
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        for key in ("timings", "gpu_memory"):
            if values[key] is None:
                del values[key]
        if self.baseline_latency_ms is not None:
            values["round_ratios"] = [r.ratio for r in self.rounds]
        return values


def file_mib(path: Path) -> float:
    """Size of an engine's file in MiB; of an ONNX file with its external data beside it."""
    if path.suffix in NATIVE_SUFFIXES or is_plan(path):
        return path.stat().st_size / 2**20
    from dq_deploy.graph.external_data import bytes_with_data

    return bytes_with_data(path) / 2**20


@contextlib.contextmanager
def _baseline_file(path: Path, manifest: EngineManifest, record: Record | None, wanted: bool) -> Iterator[Path | None]:
    """The float graph of the same tracer in a temporary folder, for a plan built like it; or None."""
    if not wanted:
        yield None
        return
    from dq_deploy.targets import float_graph

    with tempfile.TemporaryDirectory(prefix="dq-bench-") as folder:
        if is_plan(path):
            yield float_plan(path, Path(folder), record)
            return
        target = Path(folder) / "float.onnx"
        if path.suffix in NATIVE_SUFFIXES:
            manifest, record = of_native_engine(path, manifest, record)
        float_graph(manifest, target, record=record)
        yield target


@dataclass
class _Series:
    """What one engine gave so far."""

    latency_ms: list[Sequence[float]] = field(default_factory=list)
    load_ms: float = 0.0
    peak_mib: float = 0.0
    finite_check_ms: float = 0.0
    gpu_memory: GpuMemory | None = None


def _latency(series: _Series) -> Latency:
    p50, p90, p99 = np.percentile(np.concatenate(series.latency_ms), [50, 90, 99])
    return Latency(p50=float(p50), p90=float(p90), p99=float(p99))


Measured = dict[str, dict[str, _Series]]
"""Clock -> engine or baseline -> what it gave."""


def _take_turns(
    running: dict[str, Worker],
    *,
    batch: int,
    rounds: int,
    options: BenchOptions,
    clocks: Sequence[str],
    tick: Callable[[], None],
) -> Measured:
    """Rounds of one batch size; the engine that starts alternates, so that a drift hits both."""
    series: Measured = {clock: {name: _Series() for name in running} for clock in clocks}
    for number in range(rounds):
        names = list(running) if number % 2 == 0 else list(reversed(running))
        for clock in clocks:
            for name in names:
                answer = running[name].time(
                    batch=batch,
                    warmup=options.warmup,
                    runs=options.runs,
                    seconds=options.seconds,
                    clock=clock,
                    sizes=options.sizes,
                )
                own = series[clock][name]
                own.latency_ms.append(answer.latency_ms)
                own.peak_mib = answer.peak_mib
                own.load_ms = running[name].load_ms
                own.finite_check_ms = answer.finite_check_ms
                tick()
    return series


def _round(own: Sequence[float], other: Sequence[float] | None) -> Round:
    p50 = float(np.median(own))
    if other is None:
        return Round(p50_ms=p50)
    baseline = float(np.median(other))
    return Round(p50_ms=p50, baseline_p50_ms=baseline, ratio=baseline / p50)


def _batch_result(batch: int, own: _Series, other: _Series | None) -> BatchResult:
    p50 = _latency(own).p50
    baseline = None if other is None else _latency(other).p50
    return BatchResult(
        batch=batch,
        p50_ms=p50,
        images_per_s=batch / p50 * 1e3,
        baseline_p50_ms=baseline,
        baseline_images_per_s=None if baseline is None else batch / baseline * 1e3,
    )


def sizes_of_runs(runner: Runner, manifest: EngineManifest, asked: Mapping[str, int]) -> dict[str, int]:
    """Sizes of the axes that vary in timed runs, by name; none for a plan, whose profile has the best ones.

    Args:
        runner: the engine.
        manifest: its manifest; one of an earlier version has no sizes, so they are those of the configuration.
        asked: sizes that the user gave.

    Raises:
        OptionError: a size that does not vary in this engine.
    """
    if isinstance(manifest, PlanManifest):
        return runner.sizes_with(asked) if asked else {}
    usual = call_of_manifest(manifest).sizes if manifest.sizes is None else {}
    return {name: usual[name] for name in runner.sizes if name in usual} | runner.sizes_with(asked)


def benchmark(
    engine_path: str | Path,
    *,
    baseline: bool = False,
    record: Record | None = None,
    options: BenchOptions | None = None,
    integer_mac_share: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> BenchReport:
    """Time an exported engine, and with `baseline` the float graph of the same tracer on the same engine.

    The baseline of a plan is a plan with float16 in all layers, built for the same GPUs and shapes; that of the native
    engine is the float graph on ONNX Runtime.

    Args:
        engine_path: exported ONNX file or plan, with its manifest; or a record, which the native engine runs.
        baseline: also time the float graph; the two take turns, in at least 7 rounds.
        record: gives the float graph its weights; without it they are random, which takes the same time.
        options: how to time.
        integer_mac_share: what `dq_deploy.verify` attested, for the report; None where it was not asked.
        on_progress: called with (turns done, turns in all).

    Raises:
        FileProblemError: the engine or its manifest is missing or broken.
        OptionError: fewer than 7 rounds with a baseline, or a batch size the plan was not built for.
        MissingDependencyError: a library is missing; for a plan, the driver.
    """
    options = options or BenchOptions()
    path = with_files_beside(Path(engine_path))
    if baseline and options.rounds < MIN_BASELINE_ROUNDS:
        raise OptionError(f"rounds is {options.rounds}, expected at least {MIN_BASELINE_ROUNDS} with a baseline")
    clocks = PLAN_CLOCKS if is_plan(path) else (HOST,)
    environment = describe_environment(threads=options.threads)
    # opened once before anything is built: what is missing is said now
    with open_engine(
        path,
        engine=options.engine,
        threads=options.threads,
        isa=options.isa,
        device=options.device,
        attention=options.attention,
        hash_check=options.hash_check,
    ) as runner:
        manifest, kind = runner.manifest, runner.engine
        # the same for the baseline, whose graph has no manifest
        assert manifest is not None  # required by default
        options = replace(options, sizes=sizes_of_runs(runner, manifest, options.sizes))
        if baseline and record is not None and content_sha256(record) != manifest.record_sha256:
            raise FileProblemError(
                f"engine {path} was made from the record {str(manifest.record_sha256)[:12]}, the one given is "
                f"{content_sha256(record)[:12]}; give the engine's own, or none"
            )
        if isinstance(manifest, PlanManifest) and runner.device_runs is not None:
            check_batches(manifest, options.batches, path)
            environment["gpu"] = asdict(runner.device_runs.cuda.facts())
        if runner.layer_runs is not None:
            environment["native"] = native_facts(runner.layer_runs, baseline=baseline)
    with _baseline_file(path, manifest, record, baseline) as float_path:
        files = {"engine": path} | ({} if float_path is None else {"baseline": float_path})
        settings = worker_settings(files, kind, options)
        by_batch = _time_batches(settings, options, clocks, on_progress)
        if "gpu" in environment:
            _add_gpu_memory(by_batch, settings, options, clocks, str(environment["gpu"]["pci_bus_id"]))
        sizes = {name: file_mib(file) for name, file in files.items()}
    return BenchReport(
        engine=kind,
        engine_path=str(path),
        target=manifest.target,
        mode=manifest.mode,
        **_numbers(by_batch, options.batches[0], clocks),
        file_mib=sizes["engine"],
        baseline_file_mib=sizes.get("baseline"),
        integer_mac_share=integer_mac_share,
        environment=environment,
        options=asdict(options),
    )


def _add_gpu_memory(
    by_batch: dict[int, Measured],
    settings: dict[str, WorkerSettings],
    options: BenchOptions,
    clocks: Sequence[str],
    pci_bus_id: str,
) -> None:
    """GPU memory of each engine, one after another, when all that is timed has ended."""
    first = options.batches[0]
    for name, own in settings.items():
        by_batch[first][clocks[-1]][name].gpu_memory = gpu_memory_alone(
            own, pci_bus_id, batch=first, clock=clocks[0], sizes=options.sizes
        )


def _timing(series: dict[str, _Series]) -> Timing:
    latency = _latency(series["engine"])
    if "baseline" not in series:
        return Timing(latency_ms=latency)
    baseline = _latency(series["baseline"])
    return Timing(latency_ms=latency, baseline_latency_ms=baseline, speedup=baseline.p50 / latency.p50)


def _numbers(by_batch: dict[int, Measured], first: int, clocks: Sequence[str]) -> dict[str, Any]:
    """The fields of the report that come from the timed runs."""
    measured = by_batch[first]
    own, other = measured[clocks[0]]["engine"], measured[clocks[0]].get("baseline")
    timing = _timing(measured[clocks[0]])
    others = [None] * len(own.latency_ms) if other is None else other.latency_ms
    last = measured[clocks[-1]]  # of a plan the host's clock, the one whose runs look for NaN
    memory = {name: series.gpu_memory for name, series in last.items() if series.gpu_memory is not None}
    return {
        "batch": first,
        "latency_ms": timing.latency_ms,
        "baseline_latency_ms": timing.baseline_latency_ms,
        "speedup": timing.speedup,
        "rounds": tuple(_round(a, b) for a, b in zip(own.latency_ms, others, strict=True)),
        "batches": tuple(
            _batch_result(b, m[clocks[0]]["engine"], m[clocks[0]].get("baseline")) for b, m in by_batch.items()
        ),
        "peak_mib": last["engine"].peak_mib,
        "baseline_peak_mib": last["baseline"].peak_mib if "baseline" in last else None,
        "finite_check_ms": last["engine"].finite_check_ms,
        "load_ms": own.load_ms,
        "baseline_load_ms": None if other is None else other.load_ms,
        "clock": clocks[0],
        "timings": {clock: _timing(measured[clock]) for clock in clocks} if len(clocks) > 1 else None,
        "gpu_memory": memory or None,
    }


def _time_batches(
    settings: dict[str, WorkerSettings],
    options: BenchOptions,
    clocks: Sequence[str],
    on_progress: Callable[[int, int], None] | None,
) -> dict[int, Measured]:
    """Series by batch size, clock and engine; the other batch sizes get three rounds and the first clock only."""
    plan = {batch: options.rounds if i == 0 else min(3, options.rounds) for i, batch in enumerate(options.batches)}
    used = {batch: clocks if i == 0 else clocks[:1] for i, batch in enumerate(options.batches)}
    turns, done = sum(rounds * len(used[batch]) for batch, rounds in plan.items()) * len(settings), 0

    def tick() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, turns)

    with workers(settings) as running:
        return {
            batch: _take_turns(running, batch=batch, rounds=rounds, options=options, clocks=used[batch], tick=tick)
            for batch, rounds in plan.items()
        }
