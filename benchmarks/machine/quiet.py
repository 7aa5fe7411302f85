"""How busy other work keeps the cores in use, so that a number from a busy machine says so itself."""

from __future__ import annotations

import os
import time
from pathlib import Path

TOO_BUSY = 0.1
"""Share of the cores above which numbers are not worth keeping."""


def busy_share(before: list[int], after: list[int]) -> float:
    """Share of the time between two `ticks` in which the cores were not idle."""
    spent = [b - a for a, b in zip(before, after, strict=True)]
    total = sum(spent[:8])
    return 0.0 if total <= 0 else 1.0 - (spent[3] + spent[4]) / total


def ticks() -> list[int]:
    """Counters of the cores this process may use: user, nice, system, idle and so on; zeros where the system has none.

    A process held to some cores (`taskset`) is not slowed by what runs on the others.
    """
    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text(encoding="ascii").splitlines()]
    except OSError:
        return [0] * 10
    return [sum(column) for column in zip(*(map(int, words[1:]) for words in lines if words[0] in mine), strict=True)]


def others_busy(seconds: float = 0.2) -> float:
    """Share of the cores that other processes use while this one sleeps."""
    before = ticks()
    time.sleep(seconds)
    return busy_share(before, ticks())


def goes_first() -> bool:
    """Whether this process, and what it starts, runs before all usual work (`chrt -f 1`)."""
    return os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)


def remark(shares: list[float]) -> str:
    """A line about a busy machine; empty for a quiet one, and where others had to wait."""
    mean = sum(shares) / max(1, len(shares))
    if goes_first():
        return ""
    return "" if mean <= TOO_BUSY else f"other processes took {mean:.0%} of the cores between the turns: measure again"
