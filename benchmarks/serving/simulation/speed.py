"""How fast a machine was through a load: what else it did, or that it stood still, as a factor by time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

BIN_SECONDS = 0.05
"""Of the load's time, for each of which one speed is kept."""

KNOWN_SHARE = 0.2
"""Of a bin must have been seen, or what else was seen then says its speed."""

Spent = tuple[float, float, float]
"""(begun, seconds that it took, seconds that it usually takes) of a piece of work; begun is from the load's begin."""


def speeds(sources: Sequence[Iterable[Spent]], lasted_s: float) -> list[float]:
    """Work done by time spent in each bin of a load; 1 where nothing was seen.

    A piece of work that took long did little in each bin that it crossed. So a pause is there once, as long as it was,
    however many or few pieces of work met it.

    Args:
        sources: work of the thread in question, then of others, which count where the first was idle.
        lasted_s: of the load.
    """
    count = int(lasted_s / BIN_SECONDS) + 1
    found: list[float | None] = [None] * count
    for source in sources:
        busy, done = [0.0] * count, [0.0] * count
        for begun, took, usual in source:
            end = begun + took
            for index in range(max(0, int(begun / BIN_SECONDS)), min(count - 1, int(end / BIN_SECONDS)) + 1):
                here = min(end, (index + 1) * BIN_SECONDS) - max(begun, index * BIN_SECONDS)
                if here > 0:
                    busy[index] += here
                    done[index] += here / took * usual
        for index in range(count):
            if found[index] is None and busy[index] >= KNOWN_SHARE * BIN_SECONDS:
                found[index] = done[index] / busy[index]
    return [1.0 if speed is None else float(f"{speed:.3g}") for speed in found]


def lasts(known: Sequence[float], now: float, work_s: float) -> float:
    """Seconds that a piece of work takes which begins now; behind the load the machine is as fast as usual.

    Args:
        known: speed in each bin.
        now: seconds from the load's begin.
        work_s: seconds that it usually takes.
    """
    at, index = now, int(now / BIN_SECONDS)
    while index < len(known):
        room = (index + 1) * BIN_SECONDS - at
        if room > 0:
            if known[index] * room >= work_s:
                return at - now + work_s / known[index]
            work_s -= known[index] * room
            at += room
        index += 1
    return at - now + work_s
