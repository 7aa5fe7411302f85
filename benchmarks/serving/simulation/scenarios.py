"""What is simulated: rates, numbers of replicas, a burst, a lost replica, cold starts, the autoscaler on gauges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from benchmarks.serving.simulation.fleet import Fleet, Kind, Scaler
from benchmarks.serving.simulation.queueing import percentiles
from benchmarks.serving.simulation.times import Times, mean_of
from dq_deploy.serve import Limits

SD15_STEP_S = 2.795
"""A step of Stable Diffusion 1.5, W8A8, batch 2, attention int8, two threads with AVX512-VNNI: docs/measured.md."""

SD15_AMX_STEP_S = 1.051
"""The same with AMX, attention in bfloat16: docs/measured.md."""

SD15 = "(4, 64, 64)"
SD15_KINDS: Sequence[Kind] = ((SD15, 20, 2, 1),)
"""One picture of 20 steps with guidance."""


_SD15_HOLDS = {"check": [(0.0, 0.001)], "first": [(0.0, 0.05)], "between": [(0.0, 0.005)], "last": [(0.0, 1.0)]}
"""Of its text encoder, scheduler and VAE: assumed, and short beside a minute of steps."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What the fleets serve.

    Attributes:
        name: of the model.
        times: of one replica.
        kinds: of requests.
        limits: of a replica.
        start_s: from the order to start a replica until it takes requests.
    """

    name: str
    times: Times
    kinds: Sequence[Kind]
    limits: Limits
    start_s: float

    def capacity(self) -> float:
        """Requests a second that a replica answers at most, from the times: full calls, one engine or the turn."""
        rows = sum(kind[1] * kind[2] * kind[3] for kind in self.kinds) / len(self.kinds)
        pictures = sum(kind[3] for kind in self.kinds) / len(self.kinds)
        steps = sum(kind[1] * kind[3] for kind in self.kinds) / len(self.kinds)
        shapes = {kind[0] for kind in self.kinds}
        most = self.limits.max_batch
        each = float(np.mean([self.times.mean_call(shape, most) / most for shape in shapes]))
        holds = {name: mean_of(found) for name, found in self.times.holds.items()}
        turn = pictures * (holds["first"] + holds["last"]) + (steps - pictures) * holds["between"]
        return 1 / max(rows * each / self.limits.instances, turn)

    def gain(self) -> float:
        """How much faster full calls are than calls of one picture."""
        shape = self.kinds[0][0]
        rows, most = self.kinds[0][2], self.limits.max_batch
        return self.times.mean_call(shape, rows) / rows / (self.times.mean_call(shape, most) / most)

    def speed(self, at_once: int) -> float:
        """Steps a second of so many pictures together: calls hold one shape each, as full as its share makes them."""
        rows, turn = self.kinds[0][2], mean_of(self.times.holds["between"])
        seconds = 0.0
        for shape, number in Counter(kind[0] for kind in self.kinds).items():
            here = at_once * number / len(self.kinds)
            together = max(1, min(self.limits.max_batch // rows, round(here / self.limits.instances)))
            call = self.times.mean_call(shape, together * rows) + mean_of(self.times.after)
            seconds += here / together * call
        # one picture's turn comes behind its call; of several it comes while others are in a call
        engines = min(at_once, self.limits.instances)
        return min(at_once * engines / (seconds + (turn if at_once == 1 else 0.0)), 1 / turn)

    def by_formula(self, rate: float) -> list[float]:
        """p50 and p99 of one replica at so many requests a second."""
        holds, steps = self.times.holds, np.array([kind[1] * kind[3] for kind in self.kinds])
        besides = self.times.outside + mean_of(holds["first"]) + mean_of(holds["last"]) + mean_of(self.times.files)
        return percentiles(rate, steps, self.speed, besides)


def sd15(max_batch: int, queue: int = 256, step_s: float = SD15_STEP_S, cpu: str = "") -> Model:
    """Stable Diffusion 1.5: each sample of a call takes its own time, for the cores are busy with one.

    Args:
        max_batch: samples of a call.
        queue: pictures that may wait.
        step_s: a step of one picture with guidance.
        cpu: in its name, where it is not the usual one.
    """
    calls = {SD15: {rows: [(0.0, step_s * rows / 2)] for rows in range(2, max_batch + 1, 2)}}
    times = Times(calls=calls, after=[(0.0, 0.001)], holds=_SD15_HOLDS, files=[(0.0, 0.05)])
    limits = Limits(max_batch=max_batch, queue=queue)
    words = f"SD 1.5{cpu}, --max-batch {max_batch} --queue {queue}"
    return Model(name=words, times=times, kinds=SD15_KINDS, limits=limits, start_s=60.0)


def steady(model: Model, replicas: int, share: float, seconds: float, *, least_loaded: bool = False) -> dict[str, Any]:
    """A fleet under a share of its capacity."""
    rate = share * replicas * model.capacity()
    fleet = _fleet(model, replicas, least_loaded=least_loaded)
    fleet.env.process(fleet.poisson(lambda _: rate, seconds))
    fleet.env.run(until=seconds + model.limits.time_limit_s)
    p50, p99 = model.by_formula(rate / replicas)
    found = {"p50_s_formula": round(p50, 3), "p99_s_formula": round(p99, 3)}
    facts = {"replicas": replicas, "share": share, "rate": round(rate, 3), "least_loaded": least_loaded}
    return {**facts, **fleet.summary(seconds / 5, seconds), **found}


def lost(model: Model, replicas: int, share: float) -> dict[str, Any]:
    """One replica is killed while the fleet is under load, and replaced behind a cold start."""
    rate = share * replicas * model.capacity()
    fleet = _fleet(model, replicas)
    at = max(20.0, 3 * model.times.mean_call(model.kinds[0][0], 2) * model.kinds[0][1])
    until = at + 2 * model.start_s + 60
    fleet.env.process(fleet.poisson(lambda _: rate, until))
    fleet.env.process(fleet.lose_one(at, model.start_s))
    fleet.env.run(until=until + model.limits.time_limit_s)
    around = fleet.summary(at, at + model.start_s)
    return {"replicas": replicas, "share": share, "rate": round(rate, 3), "start_s": model.start_s, **around}


BURST = {"from": 120.0, "until": 420.0, "times": 6.0}


def burst(model: Model, scaler: Scaler, share: float, *, seconds: float = 900.0) -> tuple[dict[str, Any], Fleet]:
    """Five minutes of six times the load, on a fleet that was right for the load before."""
    usual = share * scaler.least * model.capacity()
    fleet = _fleet(model, scaler.least)

    def rate(at: float) -> float:
        return usual * (BURST["times"] if BURST["from"] <= at < BURST["until"] else 1.0)

    fleet.env.process(fleet.poisson(rate, seconds))
    fleet.env.process(fleet.scaled(scaler))
    fleet.env.run(until=seconds + model.limits.time_limit_s)
    facts = {
        "gauge": scaler.gauge,
        "target": scaler.target,
        "least": scaler.least,
        "most": scaler.most,
        "start_s": scaler.start_s,
    }
    changes = [size for at, size in fleet.sizes if at < seconds]
    turns = sum((b > a) != (c > b) for a, b, c in zip(changes, changes[1:], changes[2:], strict=False))
    hours = _replica_seconds(fleet, seconds) / 3600
    found = fleet.summary(BURST["from"], BURST["until"])
    return {**facts, **found, "changes_of_direction": turns, "replica_hours": round(hours, 2)}, fleet


def _replica_seconds(fleet: Fleet, until: float) -> float:
    ends = [*(at for at, _ in fleet.sizes[1:]), until]
    return sum(
        size * max(0.0, min(until, end) - at) for (at, size), end in zip(fleet.sizes, ends, strict=True) if at < until
    )


def _fleet(model: Model, replicas: int, *, least_loaded: bool = False) -> Fleet:
    fleet = Fleet(
        env=simpy.Environment(),
        times=model.times,
        limits=model.limits,
        kinds=model.kinds,
        least_loaded=least_loaded,
    )
    fleet.add(replicas)
    return fleet


def rows_of(models: Mapping[str, Model]) -> Iterator[dict[str, Any]]:
    """Every scenario but the bursts, one after another."""
    small = models["small"]
    for share in (0.3, 0.5, 0.7, 0.8, 0.9):
        yield {"kind": "steady", "model": small.name, **steady(small, 1, share, 120.0)}
    for share in (0.5, 0.8):
        for least_loaded in (False, True):
            yield {"kind": "steady", "model": small.name, **steady(small, 10, share, 40.0, least_loaded=least_loaded)}
    yield {"kind": "lost", "model": small.name, **lost(small, 2, 0.4)}
    yield {"kind": "lost", "model": small.name, **lost(small, 10, 0.8)}
    large = models["large"]
    for replicas, seconds in ((1, 20_000.0), (10, 6_000.0), (1000, 600.0)):
        yield {"kind": "steady", "model": large.name, **steady(large, replicas, 0.7, seconds, least_loaded=True)}
    for name in ("large", "large in pairs", "large, short queue"):
        yield {"kind": "steady", "model": models[name].name, **steady(models[name], 1000, 0.7, 600.0)}
    for name in ("large", "large, short queue"):
        yield {"kind": "lost", "model": models[name].name, **lost(models[name], 10, 0.7)}
