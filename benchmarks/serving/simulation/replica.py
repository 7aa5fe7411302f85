"""One replica in simulated time: the server's own admission and choice of steps, with times that were measured."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

from benchmarks.serving.simulation.times import Times
from dq_deploy.serve import Limits
from dq_deploy.serve.admission import Admission, QueueFullError
from dq_deploy.serve.orders import Terms
from dq_deploy.serve.steps import LINGER, LINGER_SECONDS, chosen_steps

WAKE_SECONDS = 0.0003
"""From when a picture has the turn until its thread runs and counts as one whose step is being computed.

An engine that has given out a call's outputs looks for the next call before any of their threads runs: it finds none of
them, and does not wait for them.
"""

Process = Generator[simpy.Event, Any, Any]


@dataclass(kw_only=True, eq=False)
class Asked:
    """A request in simulated time; admission reads of it what it reads of an order.

    Attributes:
        shape: of its sample, a key of `Times.calls`.
        steps: denoising steps of each picture.
        rows: samples of a step; guidance makes two.
        count: pictures.
        began: when it was sent.
        deadline: when it fails.
    """

    shape: str
    steps: int
    rows: int
    count: int
    began: float
    deadline: float
    terms: Terms = field(default_factory=Terms)
    left: int = 0
    started: bool = False
    status: int = 0
    over: simpy.Event | None = None


@dataclass(kw_only=True, eq=False)
class _Step:
    asked: Asked
    done: simpy.Event


class _Turn:
    """The turn: one picture at a time, in the order in which they asked."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env, self._held = env, False
        self._waiting: deque[simpy.Event] = deque()

    def grant(self, wake: simpy.Event) -> simpy.Event:
        if self._held:
            self._waiting.append(wake)
        else:
            self._held = True
            wake.succeed()
        return wake

    def give_back(self) -> None:
        self._held = bool(self._waiting)
        if self._waiting:
            self._waiting.popleft().succeed()


class Replica:
    """A server: engines side by side, a turn, places for pictures, a queue.

    Attributes:
        alive: false once it is lost; what it held has status 0, and its clients ask again.
        held: requests that are there.
    """

    def __init__(
        self, env: simpy.Environment, times: Times, limits: Limits, seed: int, *, replay: bool = False
    ) -> None:
        """Start its engines.

        Args:
            env: the clock.
            times: what takes how long.
            limits: of the server.
            seed: of its draws.
            replay: whether the load is replayed whose times these are, moment by moment; else they are drawn.
        """
        self._replay = replay
        self.env, self.times, self.limits, self.alive = env, times, limits, True
        self.held: set[Asked] = set()
        self._draw = random.Random(seed)
        self._admission = Admission(places=limits.places, most=limits.most, capacity=limits.queue)
        self._turn = _Turn(env)
        self._ready: list[_Step] = []
        self._stepping, self._last = 0, 0.0
        self._change = env.event()
        for _ in range(limits.instances):
            env.process(self._engine())

    @property
    def waiting(self) -> int:
        """The gauge `dq_requests_waiting`."""
        return sum(not asked.started for asked in self.held)

    @property
    def running(self) -> int:
        """The gauge `dq_requests_running`."""
        return sum(asked.started for asked in self.held)

    def ask(self, asked: Asked) -> Process:
        """Serve a request; its status is 200, 429, 504, or 0 where the replica is lost."""
        asked.left, asked.over, asked.started = asked.count, self.env.event(), False
        yield self.env.timeout(self.times.outside)
        yield self._turn.grant(self.env.event())
        yield self.env.timeout(self._time("check"))
        self._turn.give_back()
        if not self.alive:
            return
        try:
            self._admission.add(asked)  # type: ignore[arg-type]
        except QueueFullError:
            asked.status = 429
            return
        self.held.add(asked)
        self._admit()
        yield asked.over | self.env.timeout(max(0.0, asked.deadline - self.env.now))
        if asked in self.held:  # its time is up: what is drawn of it ends behind the step that runs
            self._end(asked, 504)

    def lose(self) -> None:
        """The process is killed."""
        self.alive = False
        for asked in list(self.held):
            self._end(asked, 0)
        self._ready = []

    def _moment(self) -> float | None:
        return float(self.env.now) if self._replay else None

    def _time(self, kind: str) -> float:
        return self.times.part(kind, self._draw, self._moment())

    def _end(self, asked: Asked, status: int) -> None:
        asked.status = status
        self.held.discard(asked)
        self._admission.remove(asked)  # type: ignore[arg-type]
        self._ready, gone = (
            [s for s in self._ready if s.asked is not asked],
            [s for s in self._ready if s.asked is asked],
        )
        for step in gone:
            self._turn.grant(step.done)
        if asked.over is not None and not asked.over.triggered:
            asked.over.succeed()

    def _admit(self) -> None:
        while self.alive and (found := self._admission.next()) is not None:
            asked: Any = found[0]
            asked.started = True
            self.env.process(self._picture(asked))

    def _picture(self, asked: Asked) -> Process:
        self._stepping += 1
        yield self._turn.grant(self.env.event())
        left = self._time("first")
        for number in range(asked.steps):
            yield self.env.timeout(left)
            if asked.status or not self.alive:
                break
            step = _Step(asked=asked, done=self.env.event())
            self._ready.append(step)
            self._stepping -= 1
            self._turn.give_back()
            self._notify()
            yield step.done
            held = self._time("between" if number + 1 < asked.steps else "last")
            woken = min(WAKE_SECONDS, held)
            yield self.env.timeout(woken)
            self._stepping, left = self._stepping + 1, held - woken
            if asked.status or not self.alive:
                break
        else:
            yield self.env.timeout(left)
        self._turn.give_back()
        if not asked.status and self.alive:
            yield self.env.timeout(self._time("files"))
        self._stepping -= 1
        self._notify()
        self._admission.over(asked)  # type: ignore[arg-type]
        asked.left -= 1
        if not asked.left and not asked.status:
            self._end(asked, 200)
        self._admit()

    def _notify(self) -> None:
        if not self._change.triggered:
            self._change.succeed()
            self._change = self.env.event()

    def _full(self) -> bool:
        return self._stepping < 1 or sum(s.asked.rows for s in self._ready) >= self.limits.max_batch

    def _engine(self) -> Process:
        env = self.env
        while self.alive:
            if not self._ready:
                yield self._change
                continue
            until = env.now + min(LINGER * self._last, LINGER_SECONDS)
            while not self._full() and env.now < until:
                yield self._change | env.timeout(until - env.now)
            if not self._ready:
                continue
            found = chosen_steps(
                [(0, s.asked.terms.whose, (s.asked.shape,), s.asked.rows) for s in self._ready], self.limits.max_batch
            )
            steps = [self._ready[i] for i in found]
            self._ready = [s for i, s in enumerate(self._ready) if i not in set(found)]
            rows = sum(s.asked.rows for s in steps)
            self._last = self.times.call(steps[0].asked.shape, rows, self._draw, self._moment())
            yield env.timeout(self._last)
            for step in steps:
                self._turn.grant(step.done)
            yield env.timeout(self._time("after"))
