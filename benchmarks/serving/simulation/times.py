"""Times that were measured, to be drawn from again."""

from __future__ import annotations

import bisect
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KEPT = 200
"""Of each kind at most so many are kept, spread evenly over their order."""

Seen = Sequence[tuple[float, float]]
"""(when, seconds) of what took so long; when is from 0, where the load began, to 1, where it ended."""

HOLDS = ("check", "first", "between", "last")


@dataclass(frozen=True, kw_only=True)
class Times:
    """What one server's parts took under a load, in seconds, and when.

    Drawn at random they are times of no order. Replayed, each is the one that was seen at the same moment of the load:
    so what slowed the machine for a while slows the simulation for as long.

    Attributes:
        calls: shape and rows -> times of a call of the engine.
        after: of an engine's thread behind a call, until it may begin the next.
        holds: `check`, `first`, `between`, `last` -> times that something had the turn: a request's check, a picture up
            to its first step, between two steps, behind the last.
        files: times to encode a picture.
        outside: of a request besides, on average: connection, HTTP, JSON.
    """

    calls: Mapping[str, Mapping[int, Seen]]
    after: Seen
    holds: Mapping[str, Seen]
    files: Seen
    outside: float = 0.0

    @classmethod
    def of_trace(cls, trace: Mapping[str, Any], begin: float, end: float, since: float, latency_s: float) -> Times:
        """What a traced server wrote between two moments of its clock.

        Args:
            trace: that it wrote.
            begin: of the load.
            end: of it.
            since: requests that came from then on are those whose latency is known.
            latency_s: theirs, as their clients saw it, on average.
        """
        calls: defaultdict[str, defaultdict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
        holds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in HOLDS}

        def when(at: float) -> float:
            return (at - begin) / (end - begin)

        for at, shape, rows, _, seconds in trace["calls"]:
            if begin <= at < end:
                calls[shape][rows].append((when(at), seconds))
        for at, kind, seconds in trace["holds"]:
            if begin <= at < end and kind in holds:
                holds[kind].append((when(at), seconds))
        after, files = (
            thinned([(when(at), seconds) for at, seconds in trace[name] if begin <= at < end])
            for name in ("after", "files")
        )
        return cls(
            calls={shape: {rows: thinned(found) for rows, found in sorted(by.items())} for shape, by in calls.items()},
            holds={kind: thinned(found) for kind, found in holds.items()},
            after=after,
            files=files,
            outside=max(0.0, latency_s - _mean(trace["requests"], since, end) - _mean(trace["checks"], since, end)),
        )

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> Times:
        """As `json` gave it."""
        calls = {shape: {int(rows): found for rows, found in by.items()} for shape, by in value["calls"].items()}
        return cls(
            calls=calls, after=value["after"], holds=value["holds"], files=value["files"], outside=value["outside"]
        )

    def json(self) -> dict[str, Any]:
        """For a results file."""
        return {
            "calls": self.calls,
            "after": self.after,
            "holds": self.holds,
            "files": self.files,
            "outside": self.outside,
        }

    def call(self, shape: str, rows: int, draw: random.Random, at: float | None) -> float:
        """Of a call; where none of so many rows was seen, one of the nearest number, in proportion to the rows.

        Args:
            shape: of a sample.
            rows: samples.
            draw: takes one at random.
            at: takes the one of that moment of the load, from 0 to 1; None draws.
        """
        by = self.calls[shape]
        nearest = min(by, key=lambda known: (abs(known - rows), -known))
        return one_of(by[nearest], draw, at) * (rows / nearest)

    def mean_call(self, shape: str, rows: int) -> float:
        """Of a call, on average."""
        by = self.calls[shape]
        nearest = min(by, key=lambda known: (abs(known - rows), -known))
        return mean_of(by[nearest]) * (rows / nearest)


def _mean(seen: Seen, begin: float, end: float) -> float:
    """Of times by when they began."""
    return mean_of([one for one in seen if begin <= one[0] < end])


def one_of(seen: Seen, draw: random.Random, at: float | None) -> float:
    """A time at random, or the one of a moment of the load."""
    if at is None:
        return draw.choice(seen)[1]
    index = bisect.bisect_left(seen, at, key=lambda one: one[0])
    return seen[min(index, len(seen) - 1)][1]


def mean_of(seen: Seen) -> float:
    """Of some times."""
    return sum(seconds for _, seconds in seen) / len(seen)


def thinned(found: Seen) -> list[tuple[float, float]]:
    """At most `KEPT` of some times, in their order."""
    step = max(1.0, len(found) / KEPT)
    kept = sorted(found)
    return [(round(at, 4), round(s, 5)) for at, s in (kept[int(i * step)] for i in range(min(KEPT, len(found))))]


def arrivals(rate: float, seconds: float, kinds: int, seed: int) -> Iterator[tuple[float, int]]:
    """When requests of a Poisson process are due, and which of some kinds each is; the same for the same seed."""
    draw, at = random.Random(seed), 0.0
    while (at := at + draw.expovariate(rate)) < seconds:
        yield at, draw.randrange(kinds)


def choices(kinds: int, seed: int, client: int) -> Iterator[int]:
    """Which of some kinds each request of a client is, one after another."""
    draw = random.Random(f"{seed}-{client}")
    while True:
        yield draw.randrange(kinds)
