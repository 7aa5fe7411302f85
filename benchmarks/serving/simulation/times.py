"""Times that were measured, to be drawn from again."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.serving.simulation.speed import Spent, lasts, speeds

KEPT = 200
"""Of each kind at most so many are kept, spread evenly over their order."""

Seen = Sequence[tuple[float, float]]
"""(when, seconds) of what took so long; when is from 0, where the load began, to 1, where it ended."""

HOLDS = ("check", "first", "between", "last")

LEAST = 5
"""So often must a call of so many rows have been seen, or its usual time follows from other numbers of rows alone."""

FAST = 0.1
"""Share of the calls of so many rows that take less than the usual one."""

BETWEEN = np.linspace(0.1, 0.9, 17)
"""Shares of the requests whose time outside the server is taken; the slowest may have met a pause there."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """What one server's parts took under a load, in seconds.

    Drawn at random, each is one that was seen. Replayed, each takes its usual time divided by how fast the machine
    was at that moment of the load: what slowed the machine for a while slows the simulation for as long, and a
    pause that one call met is not repeated for every call of as many rows.

    Attributes:
        calls: shape and rows -> times of a call of the engine.
        after: of an engine's thread behind a call, until it may begin the next.
        holds: `check`, `first`, `between`, `last` -> times that something had the turn: a request's check, a picture up
            to its first step, between two steps, behind the last.
        files: times to encode a picture.
        outside: of a request besides: connection, HTTP, JSON.
        speeds: of the `engine` and of the `turn`, one in each `BIN_SECONDS` of the load; empty where not measured.
    """

    calls: Mapping[str, Mapping[int, Seen]]
    after: Seen
    holds: Mapping[str, Seen]
    files: Seen
    outside: float = 0.0
    speeds: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @classmethod
    def of_trace(
        cls, trace: Mapping[str, Any], begin: float, end: float, since: float, latencies_s: Sequence[float]
    ) -> Times:
        """What a traced server wrote between two moments of its clock.

        Args:
            trace: that it wrote.
            begin: of the load.
            end: of it.
            since: requests that came from then on are those whose latencies are known.
            latencies_s: theirs, as their clients saw them.
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
        seen = cls(
            calls={shape: {rows: thinned(found) for rows, found in sorted(by.items())} for shape, by in calls.items()},
            holds={kind: thinned(found) for kind, found in holds.items()},
            after=after,
            files=files,
            outside=_outside(latencies_s, [seconds for at, seconds in trace["requests"] if since <= at < end]),
        )
        return replace(seen, speeds=seen._speeds_in(trace, begin, end))

    def _speeds_in(self, trace: Mapping[str, Any], begin: float, end: float) -> dict[str, list[float]]:
        """How fast the engine and the turn were, by what was seen of them and, where idle, of each other."""
        engine: list[Spent] = [
            (at - begin, seconds, self.usual_call(shape, rows))
            for at, shape, rows, _, seconds in trace["calls"]
            if begin <= at < end
        ]
        turn: list[Spent] = [
            (at - seconds - begin, seconds, self._usual[kind])
            for at, kind, seconds in trace["holds"]
            if begin <= at < end and kind in HOLDS
        ]
        beats: list[Spent] = [(at - begin, took, usual) for at, took, usual in trace["beats"] if begin <= at < end]
        lasted = end - begin
        return {
            "engine": speeds([engine, turn, beats], lasted),
            "turn": speeds([turn, engine, beats], lasted),
        }

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> Times:
        """As `json` gave it."""
        calls = {shape: {int(rows): found for rows, found in by.items()} for shape, by in value["calls"].items()}
        return cls(
            calls=calls,
            after=value["after"],
            holds=value["holds"],
            files=value["files"],
            outside=value["outside"],
            speeds=value.get("speeds", {}),
        )

    def json(self) -> dict[str, Any]:
        """For a results file."""
        return {
            "calls": self.calls,
            "after": self.after,
            "holds": self.holds,
            "files": self.files,
            "outside": self.outside,
            "speeds": self.speeds,
        }

    def call(self, shape: str, rows: int, draw: random.Random, at: float | None) -> float:
        """Of a call; where none of so many rows was seen, one of the nearest number, in proportion to the rows.

        Args:
            shape: of a sample.
            rows: samples.
            draw: takes one at random.
            at: seconds from the load's begin, to be replayed; None draws.
        """
        if at is not None:
            return lasts(self.speeds["engine"], at, self.usual_call(shape, rows))
        by = self.calls[shape]
        nearest = min(by, key=lambda known: (abs(known - rows), -known))
        return draw.choice(by[nearest])[1] * (rows / nearest)

    def part(self, kind: str, draw: random.Random, at: float | None) -> float:
        """Of one of `HOLDS`, `after` or `files`; `at` as of `call`."""
        if at is not None:
            return lasts(self.speeds["engine" if kind == "after" else "turn"], at, self._usual[kind])
        return draw.choice(self._parts[kind])[1]

    def usual_call(self, shape: str, rows: int) -> float:
        """What a call takes where nothing slows it, in line with all that were seen.

        Full calls are seen most where the machine was slow, for then requests gather; so the median of their times is
        too long. Of each number of rows a fast call is taken, one of the fastest tenth; a call takes no longer than one
        of more rows, and a sample of it no longer than in one of fewer.
        """
        known = self._fast_calls[shape]
        return min(seconds * max(1.0, rows / other) for other, seconds in known.items())

    @cached_property
    def _fast_calls(self) -> dict[str, dict[int, float]]:
        found = {}
        for shape, by in self.calls.items():
            often = [rows for rows, seen in by.items() if len(seen) >= LEAST] or list(by)
            found[shape] = {rows: float(np.quantile([s for _, s in by[rows]], FAST)) for rows in often}
        return found

    @cached_property
    def _parts(self) -> dict[str, Seen]:
        return {**self.holds, "after": self.after, "files": self.files}

    @cached_property
    def _usual(self) -> dict[str, float]:
        return {kind: _median(seen) for kind, seen in self._parts.items()}

    def mean_call(self, shape: str, rows: int) -> float:
        """Of a call, on average."""
        by = self.calls[shape]
        nearest = min(by, key=lambda known: (abs(known - rows), -known))
        return mean_of(by[nearest]) * (rows / nearest)


def _outside(latencies_s: Sequence[float], inside_s: Sequence[float]) -> float:
    """What requests take besides the server: between clients and server both, share by share of the requests."""
    if not latencies_s or not inside_s:
        return 0.0
    return max(0.0, float(np.mean(np.quantile(latencies_s, BETWEEN) - np.quantile(inside_s, BETWEEN))))


def _median(seen: Seen) -> float:
    return float(np.median([seconds for _, seconds in seen])) if seen else 0.0


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
