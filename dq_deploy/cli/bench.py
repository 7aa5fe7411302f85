"""`dq-bench`: how fast an engine runs, next to the float graph on a library, or a plan next to a float16 plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dq_deploy.cli.frame import check_outputs, console, numbers_from_text, progress, run, write_json
from dq_deploy.cli.frame.hash_check import HashCheck

if TYPE_CHECKING:
    from dq_deploy.bench import BenchReport


def bench(
    engine: Annotated[Path, typer.Option(help="Exported ONNX file or plan with its manifest, or a record.")],
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also time the float graph, in turns; for a plan one built in float16.")
    ] = False,
    ckpt: Annotated[
        Path | None, typer.Option(help="Quantized model: gives the float graph its weights, else random.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes; the first one is what is compared.")] = "1,4,8",
    rounds: Annotated[int, typer.Option(help="Rounds; at least 7 with --baseline.")] = 7,
    runs: Annotated[int, typer.Option(help="Least number of timed runs of one engine in one round.")] = 10,
    warmup: Annotated[int, typer.Option(help="Runs before them that are not counted.")] = 3,
    threads: Annotated[int | None, typer.Option(help="Threads of one run; default: the engine's choice.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Of the native engine: cpu or cuda; by default a GPU that can run it.")
    ] = None,
    isa: Annotated[str | None, typer.Option(help="Instruction set of the native engine; default: the best.")] = None,
    finite_check: Annotated[
        bool, typer.Option("--finite-check/--no-finite-check", help="Look for NaN and infinity, as in use.")
    ] = True,
    hash_check: HashCheck = True,
    json: Annotated[Path | None, typer.Option(help="Also write the report as JSON.")] = None,
    png: Annotated[Path | None, typer.Option(help="Also draw a chart; needs dq-deploy[report].")] = None,
) -> None:
    """Time an engine; with --baseline against the float graph of the same tracer on the same engine.

    A record runs on this project's own kernels, its float graph on ONNX Runtime.

    A plan is timed by CUDA events, with and without a CUDA graph, and against a plan built in float16.
    """
    batches = numbers_from_text(batch, "--batch", low=1)
    check_outputs(json, png, inputs=(engine, ckpt))
    from dq_deploy.bench import BenchOptions, benchmark
    from dq_deploy.bench.chart import require_matplotlib, write_chart
    from dq_deploy.manifest.plan import is_plan
    from dq_deploy.open_engine import open_engine
    from dq_deploy.record import load_record
    from dq_deploy.verify.share import attest

    if png is not None:
        require_matplotlib()
    options = BenchOptions(
        batches=batches,
        rounds=rounds,
        runs=runs,
        warmup=warmup,
        threads=threads,
        finite_check=finite_check,
        isa=isa,
        device=device,
        hash_check=hash_check,
    )
    if is_plan(engine):  # a missing driver is said before a record is read and a baseline built
        open_engine(engine, hash_check=hash_check).close()
    record = None if ckpt is None else load_record(ckpt, hash_check=hash_check)
    attested = attest(engine, device=device, hash_check=hash_check)
    share = None if attested is None else attested.integer_mac_share
    with progress("timing") as advance:
        report = benchmark(
            engine,
            baseline=baseline,
            record=record,
            options=options,
            integer_mac_share=share,
            on_progress=advance,
        )
    if json is not None:
        write_json(json, report.to_json())
    if png is not None:
        write_chart(report, png)
    _print(report)


def _add_plan_rows(report: BenchReport, row: Callable[..., None]) -> None:
    """The other clocks and the GPU memory, which only a plan has."""
    from dq_deploy.bench.clocks import CUDA

    for clock, timing in (report.timings or {}).items():
        if clock != report.clock:
            base = timing.baseline_latency_ms
            name = "without CUDA graph" if clock == CUDA else "numpy in and out"
            row(f"latency p50, {name}", timing.latency_ms.p50, None if base is None else base.p50, "ms")
    if report.gpu_memory is None:
        return
    own, other = report.gpu_memory["engine"], report.gpu_memory.get("baseline", {})
    for key, name in (
        ("weights_mib", "weights"),
        ("activations_mib", "activations and workspace"),
        ("peak_mib", "peak"),
    ):
        if own[key] is not None:
            row(f"GPU memory, {name}", own[key], other.get(key), "MiB")


def _print(report: BenchReport) -> None:
    from rich.table import Table

    from dq_deploy.bench.clocks import CLOCKS

    mode = "" if report.mode is None else f", mode {report.mode}"
    table = Table(title=f"{report.engine_path} on {report.engine}{mode}")
    table.add_column("what")
    table.add_column("engine", justify="right")
    base = report.baseline_latency_ms
    if base is not None:
        table.add_column("float", justify="right")
        table.add_column("ratio", justify="right")

    def row(name: str, own: float, other: float | None, unit: str, *, higher_is_better: bool = False) -> None:
        cells = [name, f"{own:.2f} {unit}"]
        if base is not None and other is not None:
            above, below = (own, other) if higher_is_better else (other, own)
            cells += [f"{other:.2f} {unit}", f"{above / below:.2f}x" if below else "unknown"]
        table.add_row(*cells)

    for name in ("p50", "p90", "p99"):
        other = None if base is None else getattr(base, name)
        row(f"latency {name}, batch {report.batch}", getattr(report.latency_ms, name), other, "ms")
    for entry in report.batches:
        row(
            f"images a second, batch {entry.batch}",
            entry.images_per_s,
            entry.baseline_images_per_s,
            "/s",
            higher_is_better=True,
        )
    row(f"peak memory, batch {report.batch}", report.peak_mib, report.baseline_peak_mib, "MiB")
    row("file", report.file_mib, report.baseline_file_mib, "MiB")
    row("load, from the file to the first run", report.load_ms, report.baseline_load_ms, "ms")
    _add_plan_rows(report, row)
    console().print(table)
    if report.integer_mac_share is not None:
        print(f"integer share of all MACs, attested: {100 * report.integer_mac_share:.2f} %")
    print("images a second: of one denoising step")
    if report.timings is not None:
        print(f"latency and images a second: {CLOCKS[report.clock]}")
    print(f"looking for NaN and infinity: {report.finite_check_ms:.3f} ms of each run")
    if report.speedup is not None:
        ratios = ", ".join(f"{r.ratio:.2f}" for r in report.rounds if r.ratio is not None)
        print(f"speedup {report.speedup:.2f}x at the median; round by round: {ratios}")
    env = report.environment
    if native := env.get("native"):
        print(f"{native['runs_on']}; layer parts by kernel:")
        for kernel, count in native["kernels"].items():
            print(f"  {count:4d}  {kernel}")
    if gpu := env.get("gpu"):
        print(f"{gpu['name']}, compute capability {gpu['compute_capability']}, driver for CUDA {gpu['driver_cuda']}")
    cores = f"{env['usable_cores']} cores, threads {env['threads'] or 'default'}"
    print(f"{env['cpu']}; {' '.join(env['cpu_flags'])}; {cores}, load {env['load_average_1min']} at the start")


def main() -> None:
    """Entry of the console script."""
    run(bench)


if __name__ == "__main__":
    main()
