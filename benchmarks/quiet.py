"""How busy other work keeps this machine, so that a number from a busy machine says so itself."""

from __future__ import annotations

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
    """Counters of all cores: user, nice, system, idle, waiting and so on; zeros where the system has none."""
    try:
        return [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]]
    except OSError:
        return [0] * 10


def others_busy(seconds: float = 0.2) -> float:
    """Share of the cores that other processes use while this one sleeps."""
    before = ticks()
    time.sleep(seconds)
    return busy_share(before, ticks())


def remark(shares: list[float]) -> str:
    """A line about a busy machine; empty for a quiet one."""
    mean = sum(shares) / max(1, len(shares))
    return "" if mean <= TOO_BUSY else f"other processes took {mean:.0%} of the cores between the turns: measure again"
