"""The chart of docs/scale-out.md: latency by load, and replicas through a burst."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.simulation.fleet import Fleet
from benchmarks.serving.simulation.scenarios import BURST

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#8172b3")


def write_chart(path: Path, rows: Sequence[dict[str, Any]], bursts: Sequence[tuple[dict[str, Any], Fleet]]) -> None:
    """Two panels as one picture."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    found = [row for row in rows if row["kind"] == "steady" and row["model"] == "digits" and row["replicas"] == 1]
    shares = [100 * row["share"] for row in found]
    for name, colour in (("p99", COLOURS[1]), ("p50", COLOURS[0])):
        drawn = [1000 * row[f"{name}_s"] for row in found]
        left.plot(shares, drawn, color=colour, marker="o", label=f"{name}, simulated")
        formula = [1000 * row[f"{name}_s_formula"] for row in found]
        left.plot(shares, formula, color=colour, linestyle=":", label=f"{name}, by formula")
    left.set(xlabel="load in % of what a replica can do", ylabel="ms", title="One replica, digits", yscale="log")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    left.yaxis.set_minor_formatter(NullFormatter())
    left.legend(frameon=False, fontsize=8)
    for (row, fleet), colour in zip(bursts, COLOURS, strict=True):
        times, sizes = zip(*fleet.sizes, strict=True)
        queue = row["model"].rpartition(" ")[2]
        words = f"{row['gauge']}, {row['target']:g} a replica, queue {queue}: {row['status_504']} failed"
        right.step([t / 60 for t in times], sizes, where="post", color=colour, label=words)
    right.axvspan(BURST["from"] / 60, BURST["until"] / 60, color="0.93", zorder=0)
    right.set(
        xlabel="minutes",
        ylabel="replicas",
        xlim=(0, 15),
        ylim=(0, 115),
        title="SD 1.5: six times the load in the grey minutes",
    )
    right.legend(frameon=False, fontsize=8, title="scaled by", title_fontsize=8, loc="upper left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
