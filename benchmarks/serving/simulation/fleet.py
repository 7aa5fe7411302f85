"""Replicas behind a load balancer: clients, arrivals, lost replicas, cold starts, and a scaler on the gauge."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from benchmarks.serving.simulation.replica import Asked, Process, Replica
from benchmarks.serving.simulation.times import Times
from dq_deploy.serve import Limits
from dq_deploy.serve.kubernetes.scaling import DOWN_AFTER_SECONDS, POLLING_SECONDS

Kind = tuple[str, int, int, int]
"""(shape, steps, rows, pictures) of a request."""

RETRY_SECONDS = 1.0
"""That a client waits before it asks again, where its replica was lost or refused it."""

GAUGES: dict[str, Callable[[Replica], int]] = {
    "waiting": lambda replica: replica.waiting,
    "waiting + running": lambda replica: replica.waiting + replica.running,
}


@dataclass(frozen=True, kw_only=True)
class Scaler:
    """The horizontal autoscaler as the written manifests set it.

    Attributes:
        gauge: of `GAUGES`, summed over replicas.
        target: of it a replica.
        least: replicas.
        most: replicas.
        start_s: from the decision until a replica takes requests.
        scraped_s: age of the gauge when it is read: Prometheus has it from its last scrape.
    """

    gauge: str
    target: float
    least: int
    most: int
    start_s: float
    scraped_s: float = 15.0


@dataclass(kw_only=True)
class Fleet:
    """Some replicas and what their clients saw.

    Attributes:
        latencies: (when sent, seconds) of each request that was answered.
        statuses: of all answers, lost ones as 0.
        sizes: (when, replicas) at each change.
    """

    env: simpy.Environment
    times: Times
    limits: Limits
    kinds: Sequence[Kind]
    least_loaded: bool = False
    seed: int = 0
    replay: bool = False
    replicas: list[Replica] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    sizes: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """A generator of its own."""
        self._draw, self._made = random.Random(self.seed), 0

    def add(self, number: int = 1) -> None:
        """Start replicas that take requests at once."""
        for _ in range(number):
            self._made += 1
            seed = 1000 * self.seed + self._made
            self.replicas.append(Replica(self.env, self.times, self.limits, seed, replay=self.replay))
        self.sizes.append((self.env.now, len(self.replicas)))

    def drop(self, replica: Replica, *, lost: bool) -> None:
        """Take a replica out of service: killed, or behind what it holds."""
        self.replicas.remove(replica)
        if lost:
            replica.lose()
        self.sizes.append((self.env.now, len(self.replicas)))

    def request(self, kind: int | None = None) -> Process:
        """One request of a client, of a kind, asked again where a replica was lost or its queue full."""
        shape, steps, rows, count = self._draw.choice(self.kinds) if kind is None else self.kinds[kind]
        began = self.env.now
        deadline = began + self.limits.time_limit_s
        while True:
            asked = Asked(shape=shape, steps=steps, rows=rows, count=count, began=began, deadline=deadline)
            replica = self._chosen()
            if replica is None:
                yield self.env.timeout(RETRY_SECONDS)
                continue
            yield self.env.process(replica.ask(asked))
            self.statuses.append(asked.status)
            if asked.status == 200:
                self.latencies.append((began, self.env.now - began))
            if asked.status in (200, 504) or self.env.now + RETRY_SECONDS > deadline:
                return
            yield self.env.timeout(RETRY_SECONDS)

    def _chosen(self) -> Replica | None:
        if not self.replicas:
            return None
        if self.least_loaded:
            two = [self._draw.choice(self.replicas) for _ in range(2)]
            return min(two, key=lambda one: len(one.held))
        return self._draw.choice(self.replicas)

    def poisson(self, rate: Callable[[float], float], until: float) -> Process:
        """Requests of a Poisson process whose rate may change; thinned from its highest (Lewis and Shedler 1979)."""
        most = max(rate(until * i / 1000) for i in range(1001))
        while self.env.now < until:
            yield self.env.timeout(self._draw.expovariate(most))
            if self._draw.random() * most < rate(self.env.now):
                self.env.process(self.request())

    def replayed(self, due: Iterable[tuple[float, int]]) -> Process:
        """Requests at given times, of given kinds."""
        for at, kind in due:
            yield self.env.timeout(at - self.env.now)
            self.env.process(self.request(kind))

    def closed(self, kinds: Iterable[int], until: float) -> Process:
        """One client that asks again as soon as it has its answer."""
        for kind in kinds:
            if self.env.now >= until:
                return
            yield self.env.process(self.request(kind))

    def lose_one(self, at: float, start_s: float) -> Process:
        """The replica that holds most is killed, and replaced."""
        yield self.env.timeout(at)
        self.drop(max(self.replicas, key=lambda one: len(one.held)), lost=True)
        yield self.env.timeout(start_s)
        self.add()

    def scaled(self, by: Scaler) -> Process:
        """The autoscaler: one more look each period, on a gauge that is as old as its scrape."""
        history: list[tuple[float, int]] = []
        starting = 0

        def start() -> Process:
            nonlocal starting
            yield self.env.timeout(by.start_s)
            starting -= 1
            self.add()

        seen = 0
        while True:
            old, seen = seen, sum(GAUGES[by.gauge](replica) for replica in self.replicas)
            yield self.env.timeout(POLLING_SECONDS)
            gauge = old if by.scraped_s >= POLLING_SECONDS else seen
            here = len(self.replicas) + starting
            ratio = gauge / (by.target * here)
            wanted = here if abs(ratio - 1) <= 0.1 else math.ceil(gauge / by.target)
            wanted = min(by.most, max(by.least, wanted))
            history = [(t, w) for t, w in history if self.env.now - t < DOWN_AFTER_SECONDS] + [(self.env.now, wanted)]
            if wanted > here:
                for _ in range(min(wanted, max(2 * here, here + 4)) - here):
                    starting += 1
                    self.env.process(start())
            elif (floor := max(w for _, w in history)) < here and starting == 0:
                for _ in range(min(here - floor, max(1, here // 40))):  # a tenth a minute
                    self.drop(min(self.replicas, key=lambda one: len(one.held)), lost=False)

    def summary(self, since: float, until: float) -> dict[str, Any]:
        """Percentiles of the requests that were sent in a time, and what became of all."""
        taken = [latency for began, latency in self.latencies if since <= began < until]
        p50, p99 = np.percentile(taken, [50, 99]) if taken else (math.nan, math.nan)
        return {
            "requests": len(taken),
            "p50_s": round(float(p50), 4),
            "p99_s": round(float(p99), 4),
            **{f"status_{code}": self.statuses.count(code) for code in (0, 429, 504)},
            "most_replicas": max(size for _, size in self.sizes),
        }
