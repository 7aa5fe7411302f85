"""The bench report as a picture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.artifacts import atomic_path
from dq_deploy.errors import MissingDependencyError

if TYPE_CHECKING:
    from dq_deploy.bench.harness import BenchReport

ENGINE_COLOUR = "#1f6f8b"
BASELINE_COLOUR = "#b8b8b8"


def require_matplotlib() -> None:
    """Refuse early where the chart could not be drawn.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingDependencyError(
            "the chart needs matplotlib, which is not installed; pip install 'dq-deploy[report]'"
        )


def write_chart(report: BenchReport, path: Path) -> None:
    """Write a PNG: latency of each round, and images a second over batch sizes.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        FileProblemError: the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_rounds(left, report)
    _draw_batches(right, report)
    machine = report.environment.get("gpu", {}).get("name") or report.environment.get("cpu", "")
    figure.suptitle(f"{Path(report.engine_path).name} on {report.engine}, {machine}", fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_rounds(axes: Any, report: BenchReport) -> None:
    numbers = range(1, len(report.rounds) + 1)
    axes.plot(numbers, [r.p50_ms for r in report.rounds], "o-", color=ENGINE_COLOUR, label="engine")
    if report.baseline_latency_ms is not None:
        baseline = [r.baseline_p50_ms for r in report.rounds]
        axes.plot(numbers, baseline, "o-", color=BASELINE_COLOUR, label="float, same tracer")
    axes.set(xlabel="round", ylabel="median latency, ms", title=f"batch {report.batch}")
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.legend(frameon=False)


def _draw_batches(axes: Any, report: BenchReport) -> None:
    positions = range(len(report.batches))
    with_baseline = report.baseline_latency_ms is not None
    width = 0.38 if with_baseline else 0.6
    own = [b.images_per_s for b in report.batches]
    axes.bar([p - width / 2 * with_baseline for p in positions], own, width, color=ENGINE_COLOUR)
    if with_baseline:
        baseline = [b.baseline_images_per_s for b in report.batches]
        axes.bar([p + width / 2 for p in positions], baseline, width, color=BASELINE_COLOUR)
    axes.set_xticks(list(positions), [str(b.batch) for b in report.batches])
    axes.set(xlabel="batch", ylabel="images a second (one pass each)", title="throughput of one denoising step")
