"""The harness behind `dq-bench`: engines take turns, round by round, each in its own process."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.bench.environment import describe_environment
from dq_deploy.bench.worker import Worker, WorkerSettings, workers
from dq_deploy.engines import open_engine
from dq_deploy.errors import OptionError

if TYPE_CHECKING:
    from dq_deploy.record import Record

MIN_BASELINE_ROUNDS = 7
FORMAT = "dq_deploy.bench"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """How an engine is timed.

    Attributes:
        batches: batch sizes; the first is the one that latency, speedup and memory are given for.
        rounds: rounds of the first batch; with a baseline at least 7, the two engines taking turns.
        runs: least number of timed runs of one engine in one round.
        seconds: a round goes on for about as long; a fast engine makes more runs.
        warmup: runs before them that are not counted.
        threads: threads of one run, or None for the engine's choice.
        finite_check: whether the Runner looks for NaN and infinity, as in use.
        engine: engine to run on, or None for what the manifest says.
    """

    batches: tuple[int, ...] = (1, 4, 8)
    rounds: int = 7
    runs: int = 10
    seconds: float = 0.3
    warmup: int = 3
    threads: int | None = None
    finite_check: bool = True
    engine: str | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            OptionError: one is out of range.
        """
        for name in ("rounds", "runs", "warmup"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not self.batches or min(self.batches) < 1:
            raise OptionError(f"batch sizes are {self.batches}, expected at least one, none below 1")
        if self.threads is not None and self.threads < 1:
            raise OptionError(f"threads is {self.threads}, expected at least 1")


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
class BenchReport:
    """What was measured; `to_json` has the documented keys.

    Attributes:
        engine: engine it ran on.
        engine_path: file.
        target: of the manifest, or None.
        mode: of the manifest, or None.
        batch: the batch size that latency, speedup and memory are given for.
        latency_ms: over all timed runs of that batch.
        baseline_latency_ms: of the float graph of the same tracer, or None.
        speedup: ratio of the medians, baseline over engine, or None.
        rounds: each round.
        batches: each batch size.
        peak_mib: highest resident memory of the engine's process at that batch, interpreter included.
        baseline_peak_mib: likewise, or None.
        file_mib: size of the engine file with its external data.
        baseline_file_mib: likewise, or None.
        finite_check_ms: time of a run spent looking for NaN and infinity, contained in the latency.
        integer_mac_share: share of all MACs that run in integers, where it was attested.
        environment: machine and versions.
        options: as given.
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
    integer_mac_share: float | None
    environment: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON values; the per-round ratios come once more as a list of their own."""
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        if self.baseline_latency_ms is not None:
            values["round_ratios"] = [r.ratio for r in self.rounds]
        return values


def file_mib(path: Path) -> float:
    """Size of an ONNX file with its external data beside it, in MiB."""
    sizes = [candidate.stat().st_size for candidate in (path, Path(f"{path}.data")) if candidate.is_file()]
    return sum(sizes) / 2**20


@contextlib.contextmanager
def _baseline_file(path: Path, record: Record | None, wanted: bool) -> Iterator[Path | None]:
    """The float graph of the same tracer in a temporary folder, or None."""
    if not wanted:
        yield None
        return
    from dq_deploy.graph.onnx_file import read_manifest
    from dq_deploy.targets import float_graph

    with tempfile.TemporaryDirectory(prefix="dq-bench-") as folder:
        target = Path(folder) / "float.onnx"
        float_graph(read_manifest(path), target, record=record)
        yield target


@dataclass
class _Series:
    """What one engine gave so far."""

    latency_ms: list[list[float]] = field(default_factory=list)
    peak_mib: float = 0.0
    finite_check_ms: float = 0.0


def _latency(series: _Series) -> Latency:
    p50, p90, p99 = np.percentile(np.concatenate(series.latency_ms), [50, 90, 99])
    return Latency(p50=float(p50), p90=float(p90), p99=float(p99))


def _take_turns(
    running: dict[str, Worker], *, batch: int, rounds: int, options: BenchOptions, tick: Callable[[], None]
) -> dict[str, _Series]:
    """Rounds of one batch size; the engine that starts alternates, so that a drift hits both."""
    series = {name: _Series() for name in running}
    for number in range(rounds):
        names = list(running) if number % 2 == 0 else list(reversed(running))
        for name in names:
            answer = running[name].time(batch=batch, warmup=options.warmup, runs=options.runs, seconds=options.seconds)
            series[name].latency_ms.append(answer["latency_ms"])
            series[name].peak_mib = answer["peak_mib"]
            series[name].finite_check_ms = answer["finite_check_ms"]
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

    Args:
        engine_path: exported ONNX file with its manifest.
        baseline: also time the float graph; the two take turns, in at least 7 rounds.
        record: gives the float graph its weights; without it they are random, which takes the same time.
        options: how to time.
        integer_mac_share: what `dq_deploy.verify` attested, for the report; None where it was not asked.
        on_progress: called with (turns done, turns in all).

    Raises:
        FileProblemError: the engine or its manifest is missing or broken.
        OptionError: fewer than 7 rounds with a baseline.
    """
    options = options or BenchOptions()
    path = Path(engine_path)
    if baseline and options.rounds < MIN_BASELINE_ROUNDS:
        raise OptionError(f"rounds is {options.rounds}, expected at least {MIN_BASELINE_ROUNDS} with a baseline")
    with open_engine(path, engine=options.engine, threads=options.threads) as runner:
        manifest, kind = runner.manifest or {}, runner.engine
    environment = describe_environment(threads=options.threads)
    with _baseline_file(path, record, baseline) as float_path:
        files = {"engine": path} | ({} if float_path is None else {"baseline": float_path})
        settings = {
            name: WorkerSettings(
                path=str(file), engine=kind, threads=options.threads, finite_check=options.finite_check
            )
            for name, file in files.items()
        }
        by_batch = _time_batches(settings, options, on_progress)
        sizes = {name: file_mib(file) for name, file in files.items()}
    return BenchReport(
        engine=kind,
        engine_path=str(path),
        target=manifest.get("target"),
        mode=manifest.get("mode"),
        **_numbers(by_batch, options.batches[0]),
        file_mib=sizes["engine"],
        baseline_file_mib=sizes.get("baseline"),
        integer_mac_share=integer_mac_share,
        environment=environment,
        options=asdict(options),
    )


def _numbers(by_batch: dict[int, dict[str, _Series]], first: int) -> dict[str, Any]:
    """The fields of the report that come from the timed runs."""
    own, other = by_batch[first]["engine"], by_batch[first].get("baseline")
    latency = _latency(own)
    float_latency = None if other is None else _latency(other)
    others = [None] * len(own.latency_ms) if other is None else other.latency_ms
    return {
        "batch": first,
        "latency_ms": latency,
        "baseline_latency_ms": float_latency,
        "speedup": None if float_latency is None else float_latency.p50 / latency.p50,
        "rounds": tuple(_round(a, b) for a, b in zip(own.latency_ms, others, strict=True)),
        "batches": tuple(_batch_result(b, s["engine"], s.get("baseline")) for b, s in by_batch.items()),
        "peak_mib": own.peak_mib,
        "baseline_peak_mib": None if other is None else other.peak_mib,
        "finite_check_ms": own.finite_check_ms,
    }


def _time_batches(
    settings: dict[str, WorkerSettings],
    options: BenchOptions,
    on_progress: Callable[[int, int], None] | None,
) -> dict[int, dict[str, _Series]]:
    """Series by batch size and engine; the other batch sizes get three rounds."""
    plan = {batch: options.rounds if i == 0 else min(3, options.rounds) for i, batch in enumerate(options.batches)}
    turns, done = sum(plan.values()) * len(settings), 0

    def tick() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, turns)

    with workers(settings) as running:
        return {
            batch: _take_turns(running, batch=batch, rounds=rounds, options=options, tick=tick)
            for batch, rounds in plan.items()
        }
