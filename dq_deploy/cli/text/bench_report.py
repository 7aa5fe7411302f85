"""What `dq-bench` prints of a report."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dq_deploy.cli.frame import console

if TYPE_CHECKING:
    from dq_deploy.bench import BenchReport


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
    own, other = report.gpu_memory["engine"], report.gpu_memory.get("baseline")
    for name, value, base_value in (
        ("weights", own.weights_mib, other and other.weights_mib),
        ("activations and workspace", own.activations_mib, other and other.activations_mib),
        ("peak", own.peak_mib, other and other.peak_mib),
    ):
        if value is not None:
            row(f"GPU memory, {name}", value, base_value, "MiB")


def show_bench(report: BenchReport) -> None:
    """Print what was measured, and on what."""
    from rich.table import Table

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
    _show_notes(report)


def _show_notes(report: BenchReport) -> None:
    """What belongs to the numbers: how they were taken, and on what."""
    from dq_deploy.bench.clocks import CLOCKS

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
        if native["attention_operations"]:
            ran, every = native["attention_operations"]
            rest = "; the others in float32" if ran < every else ""
            text = f"attention in {native['attention']} by {native['attention_form']}"
            print(f"{text}, {ran} of {every} operations{rest}")
        print(f"{native['runs_on']}; layer parts by kernel:")
        for kernel, count in native["kernels"].items():
            print(f"  {count:4d}  {kernel}")
    if gpu := env.get("gpu"):
        print(f"{gpu['name']}, compute capability {gpu['compute_capability']}, driver for CUDA {gpu['driver_cuda']}")
    cores = f"{env['usable_cores']} cores, threads {env['threads'] or 'default'}"
    print(f"{env['cpu']}; {' '.join(env['cpu_flags'])}; {cores}, load {env['load_average_1min']} at the start")
