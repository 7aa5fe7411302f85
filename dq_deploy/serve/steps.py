"""The scheduler of steps: it fills each call of the engine with whatever pictures are ready, at whatever timestep."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from dq_deploy.engines.base import Runner
from dq_deploy.errors import DqError, InputError
from dq_deploy.models.sizes import BATCH
from dq_deploy.numerics import step_bucket
from dq_deploy.numerics.arrays import Array
from dq_deploy.serve.orders import Order, Stopped, Whose
from dq_deploy.serve.turn import Turn

Key = tuple[object, ...]

LINGER = 0.5
"""Share of the last call's time that a call which is not full waits for more."""

LINGER_SECONDS = 0.05
"""The most of it."""


@dataclass(frozen=True, kw_only=True)
class EngineCall:
    """One call of the engine, as the metrics see it.

    Attributes:
        rows: samples in it.
        steps: pictures whose steps they are.
        seconds: of the engine.
        waited_s: of each picture's step, from ready to begun.
    """

    rows: int
    steps: int
    seconds: float
    waited_s: tuple[float, ...]


@dataclass(kw_only=True, eq=False)
class _Step:
    """A step that waits for the engine: its inputs, and where its outputs go."""

    order: Order
    feeds: Mapping[str, Array]
    rows: int
    key: Key
    ready_at: float = field(default_factory=time.monotonic)
    outputs: dict[str, Array] | None = None
    error: BaseException | None = None
    over: threading.Event = field(default_factory=threading.Event)


class StepScheduler:
    """Runs an engine, or several of the same file side by side, each in a thread of its own, one call after another.

    A call holds steps of one shape: first those of the highest priority, of each priority in turn a step of each
    client, of each client the one that is ready longest. A step with more rows than `max_rows` (n samples of a
    pipeline that takes them at once) runs alone.

    A call that is not full waits for pictures whose scheduler's step is being computed, at most `LINGER` of the time
    that the last call took: they are ready soon, and two calls of half the rows take longer than one.
    """

    def __init__(
        self,
        engines: Sequence[Runner],
        turn: Turn,
        *,
        max_rows: int,
        observe: Callable[[EngineCall], None] | None = None,
    ) -> None:
        """Start the threads.

        Args:
            engines: stay the caller's to close, after this is closed.
            turn: of the threads that call `run`; each has it again when its step is over.
            max_rows: samples of one call, guidance counted as two.
            observe: is told of each call, by the engine's thread.
        """
        self._engines, self.engine = engines, engines[0]
        self.max_rows = max_rows if joins(self.engine) else 1
        self._turn, self._observe = turn, observe
        self._ready: list[_Step] = []
        self._changed = threading.Condition()
        self._closing = False
        self._stepping = 0
        self._last_s = 0.0
        self._threads = [
            threading.Thread(target=self._work, args=(one,), name=f"engine-{i}", daemon=True)
            for i, one in enumerate(engines)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, order: Order, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Wait for the engine's outputs of checked inputs; the caller, which has the turn, is without it meanwhile.

        Args:
            order: whose step it is; where it ends meanwhile the step is not run, or its outputs are dropped.
            feeds: inputs that the engine's runner has checked.

        Raises:
            Stopped: the order ended.
            DqError: the engine failed on these inputs alone.
        """
        step = _Step(order=order, feeds=feeds, rows=_rows(self.engine, feeds), key=_key(self.engine, feeds))
        first = [work for engine in self._engines if (work := engine.preparation(feeds)) is not None]
        with self._changed:
            if self._closing:
                raise Stopped("the server stops")
            if not first:
                self._ready.append(step)
            self._stepping -= 1
            self._changed.notify_all()
        self._turn.give_back()
        if first:
            self._prepare(step, first)
        step.over.wait()  # set with the turn
        with self._changed:
            self._stepping += 1
        order.check_going_on()
        if step.error is not None:
            raise step.error
        assert step.outputs is not None
        return step.outputs

    def _prepare(self, step: _Step, first: Sequence[Callable[[], object]]) -> None:
        """Do what a step's sizes need first, in its picture's thread: no other picture waits for it."""
        try:
            for work in first:
                work()
        except Exception as error:  # of a library, as in a run: it is this picture's
            step.error = error
        with self._changed:
            if self._closing and step.error is None:
                step.error = Stopped("the server stops")
            if step.error is None and not step.order.ended:
                step.ready_at = time.monotonic()
                self._ready.append(step)
                self._changed.notify_all()
                return
        self._turn.grant(step.over)

    @contextmanager
    def picture(self) -> Iterator[None]:
        """While a picture is drawn: between its steps others wait for it a moment."""
        with self._changed:
            self._stepping += 1
        try:
            yield
        finally:
            with self._changed:
                self._stepping -= 1
                self._changed.notify_all()

    def forget(self, order: Order) -> None:
        """Let the waiting steps of an order go, which has ended."""
        with self._changed:
            gone = [step for step in self._ready if step.order is order]
            self._ready = [step for step in self._ready if step.order is not order]
        for step in gone:
            self._turn.grant(step.over)

    def close(self) -> None:
        """End the threads behind the calls that run; steps that wait are stopped."""
        with self._changed:
            self._closing = True
            gone, self._ready = self._ready, []
            self._changed.notify_all()
        for step in gone:
            step.error = Stopped("the server stops")
            self._turn.grant(step.over)
        for thread in self._threads:
            thread.join()

    def _work(self, engine: Runner) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._ready)
                if not self._closing and LINGER:
                    self._changed.wait_for(self._full, min(LINGER * self._last_s, LINGER_SECONDS))
                if self._closing:
                    return
                steps = self._chosen() if self._ready else []
            if not steps:
                continue
            self._run(engine, steps)

    def _full(self) -> bool:
        """Whether waiting brings nothing."""
        return self._closing or self._stepping < 1 or sum(step.rows for step in self._ready) >= self.max_rows

    def _chosen(self) -> list[_Step]:
        """The steps of the next call, taken from those that are ready."""
        found = chosen_steps([(s.order.terms.priority, s.order.terms.whose, s.key, s.rows) for s in self._ready],
                             self.max_rows)  # fmt: skip
        steps = [self._ready[i] for i in found]
        taken = set(found)
        self._ready = [step for i, step in enumerate(self._ready) if i not in taken]
        return steps

    def _run(self, engine: Runner, steps: Sequence[_Step]) -> None:
        begun = time.monotonic()
        try:
            _fill(steps, _together(engine, steps))
        except Exception as error:
            if len(steps) == 1:
                steps[0].error = error
            else:  # one of them is to blame, and the others are not to fail with it
                for step in steps:
                    _run_alone(engine, step)
        self._last_s = seconds = time.monotonic() - begun
        for step in steps:
            self._turn.grant(step.over)
        if self._observe is not None:
            waited = tuple(begun - step.ready_at for step in steps)
            self._observe(
                EngineCall(rows=sum(s.rows for s in steps), steps=len(steps), seconds=seconds, waited_s=waited)
            )


def _run_alone(engine: Runner, step: _Step) -> None:
    try:
        _fill([step], _together(engine, [step]))
    except Exception as error:
        step.error = error


def _together(engine: Runner, steps: Sequence[_Step]) -> dict[str, Array]:
    """Outputs of one call of the engine, the steps' samples one behind the other."""
    if len(steps) == 1:
        return engine.run_checked(steps[0].feeds)
    shared = {spec.name for spec in engine.inputs if not spec.shape or spec.shape[0] != BATCH}
    first = steps[0].feeds
    joined = {
        name: value if name in shared else np.concatenate([step.feeds[name] for step in steps])
        for name, value in first.items()
    }
    return engine.run_checked(joined)


def _fill(steps: Sequence[_Step], outputs: Mapping[str, Array]) -> None:
    """Give each step its rows."""
    if len(steps) == 1:
        steps[0].outputs = dict(outputs)
        return
    rows = sum(step.rows for step in steps)
    for name, value in outputs.items():
        if len(value) != rows:
            raise DqError(f"output {name} has {len(value)} rows for {rows} samples; give max_batch 1")
    start = 0
    for step in steps:
        end = start + step.rows
        step.outputs = {name: value[start:end] for name, value in outputs.items()}
        start = end


def chosen_steps(ready: Sequence[tuple[int, Whose, Key, int]], max_rows: int) -> list[int]:
    """Which of the steps that are ready go into the next call.

    Args:
        ready: (priority, whose, key, rows) of each, the one that waits longest first; steps of one key fit into one
            call.
        max_rows: of a call; a step with more rows goes alone.

    Returns:
        Indices into `ready`, at least one. The first is of the highest priority and waits longest; the others have its
        key, higher priorities first, and of each priority the clients take turns, and of each client its users. Their
        rows are a power of two or
        `max_rows`, where that can be: an engine prepares memory for each size of a batch, and few sizes stay prepared.
    """
    best = max(range(len(ready)), key=lambda i: (ready[i][0], -i))
    key, rows = ready[best][2], ready[best][3]
    found = [best]
    clients, users = Counter({ready[best][1][0]: 1}), Counter({ready[best][1]: 1})
    waiting = [i for i in range(len(ready)) if i != best and ready[i][2] == key]
    while waiting:
        following = min(waiting, key=lambda i: (-ready[i][0], clients[ready[i][1][0]], users[ready[i][1]], i))
        if rows + ready[following][3] > max_rows:
            break
        waiting.remove(following)
        found.append(following)
        rows += ready[following][3]
        clients[ready[following][1][0]] += 1
        users[ready[following][1]] += 1
    while len(found) > 1 and rows != max_rows and rows & (rows - 1):
        rows -= ready[found.pop()][3]
    return found


def joins(engine: Runner) -> bool:
    """Whether samples of several requests can stand in one call: every input and output has the batch in front.

    An input without it, as one number for all, may be there beside others that have it: steps then share its value.
    """
    with_batch = [bool(spec.shape) and spec.shape[0] == BATCH for spec in (*engine.inputs, *engine.outputs)]
    outputs = with_batch[len(engine.inputs) :]
    elsewhere = any(BATCH in spec.shape[1:] for spec in (*engine.inputs, *engine.outputs))
    return any(with_batch) and all(outputs) and not elsewhere


def _rows(engine: Runner, feeds: Mapping[str, Array]) -> int:
    return next((len(feeds[s.name]) for s in engine.inputs if s.shape and s.shape[0] == BATCH), 1)


def _key(engine: Runner, feeds: Mapping[str, Array]) -> Key:
    """What steps must have in common to stand in one call."""
    found: list[object] = []
    for spec in engine.inputs:
        value = feeds[spec.name]
        batched = bool(spec.shape) and spec.shape[0] == BATCH
        found.append(value.shape[1:] if batched else (value.shape, value.tobytes()))
    manifest = engine.manifest
    if manifest is not None and manifest.single_step_batch and "timestep" in feeds:
        edges = np.asarray(manifest.step_edges, np.float32)
        found.append(tuple(np.unique(step_bucket(feeds["timestep"], edges)).tolist()))
    return tuple(found)


class SharedEngine(Runner):
    """The engine as one picture's pipeline sees it: its calls wait for the scheduler of steps.

    Inputs and outputs are checked here, for each picture alone; so one picture with a number that is not finite stops
    no other. Which order a call is of, the calling thread says by `serving`.
    """

    side_by_side = True

    def __init__(self, steps: StepScheduler) -> None:
        engine = steps.engine
        self.engine = engine.engine  # its name, which the base looks up
        super().__init__(engine.manifest, finite_check=True)
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self._steps = steps
        self._of_thread = threading.local()

    @property
    def version(self) -> str:
        """Of the engine."""
        return self._steps.engine.version

    def serving(self, order: Order) -> None:
        """Calls of this thread are from now on of an order."""
        self._of_thread.order = order

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        order: Order | None = getattr(self._of_thread, "order", None)
        if order is None:
            raise InputError("the engine was called by a thread that serves no request")
        return self._steps.run(order, feeds)

    def _free(self) -> None:
        """The engine is the caller's."""
