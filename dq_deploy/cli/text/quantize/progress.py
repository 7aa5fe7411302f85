"""Progress of `dq-quantize`: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from dq_deploy.cli.frame import stderr_console
from dq_deploy.cli.frame.failures import in_flags, one_line
from dq_deploy.methods.progress import Progress

STAGES = {
    "trajectory": "drawing calibration samples",
    "ranges": "calibrating ranges",
    "scales": "learning equivalent scales",
    "correction": "correcting by step",
    "pictures": "training on pictures",
    "sensitivity": "measuring the sensitivity of layers",
    "weights": "searching weight scales",
    "rounding": "rounding blocks",
    "distill": "training blocks",
    "finetune": "finetuning",
}
LINE_EVERY_S = 10.0


class ProgressView:
    """A callback for `dq_deploy.methods.quantize` and the context its bar lives in."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._stage = ""
        self._block = ""
        self._started = time.monotonic()
        self._printed = 0.0
        self._first_done = 0

    def __enter__(self) -> ProgressView:
        """Start the bar where stderr is a terminal."""
        if sys.stderr.isatty():
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f} %  {task.fields[detail]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=stderr_console(),
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the bar."""
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, report: Progress) -> None:
        """Show one report."""
        if report.note:
            print(one_line(f"note: {in_flags(report.note)}"), file=sys.stderr, flush=True)
        if report.stage != self._stage:
            self._stage, self._started, self._first_done = report.stage, time.monotonic(), 0
            if self._bar is not None:
                words = STAGES.get(report.stage, report.stage)
                self._task = self._bar.add_task(words, total=report.total, detail="")
        if self._bar is not None:
            detail = "" if report.loss is None else f"loss {report.loss:.4f}  {report.block}"
            self._bar.update(self._task, completed=report.done, total=report.total, detail=detail)
            return
        self._print_line(report)

    def _print_line(self, report: Progress) -> None:
        now = time.monotonic()
        is_new = report.block != self._block
        if not is_new and report.done < report.total and now - self._printed < LINE_EVERY_S:
            return
        self._printed, self._block = now, report.block
        words = STAGES.get(report.stage, report.stage)
        line = f"{words}: {report.done} of {report.total}"
        if report.loss is not None:
            left = (now - self._started) * (report.total - report.done) / max(report.done, 1)
            line += f"{', ' * bool(report.block)}{report.block}, loss {report.loss:.5f}, {left:.0f} s left"
        print(line, file=sys.stderr, flush=True)
