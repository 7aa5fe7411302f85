"""Which steps stand in one call of the engine, and that a call's failure harms nobody but who is to blame."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dq_deploy.errors import DqError
from dq_deploy.models import call_of_record, example_inputs
from dq_deploy.open_engine import open_engine
from dq_deploy.serve.orders import Kind, Order, Reason, Stopped, Terms
from dq_deploy.serve.steps import StepScheduler, chosen_steps, joins
from dq_deploy.serve.turn import Turn


def whose(name):
    """A client of one letter, and its user."""
    return name[0], name[1:]


READY = st.lists(
    st.tuples(
        st.integers(-2, 2),
        st.sampled_from(["xa", "xb", "y"]).map(whose),
        st.sampled_from([("a",), ("b",)]),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=15,
)


@given(READY, st.integers(1, 8))
def test_a_call_holds_one_shape_begins_with_the_most_urgent_and_is_no_larger_than_allowed(ready, most):
    found = chosen_steps(ready, most)
    assert len(set(found)) == len(found) > 0
    highest = max(entry[0] for entry in ready)
    assert found[0] == next(i for i, entry in enumerate(ready) if entry[0] == highest)
    assert {ready[i][2] for i in found} == {ready[found[0]][2]}
    rows = sum(ready[i][3] for i in found)
    assert rows <= max(most, ready[found[0]][3])
    assert len(found) == 1 or rows == most or rows.bit_count() == 1


def test_clients_take_turns_in_a_call():
    ready = [(0, whose("x"), (), 1)] * 5 + [(0, whose("y"), (), 1)] * 2
    assert [ready[i][1][0] for i in chosen_steps(ready, 4)] == ["x", "y", "x", "y"]


def test_a_client_that_names_many_users_takes_one_turn_and_they_take_turns_in_it():
    ready = [(0, whose(name), (), 1) for name in ("xa", "xa", "xb", "xc", "xd", "y", "y", "y")]
    assert ["".join(ready[i][1]) for i in chosen_steps(ready, 8)] == ["xa", "y", "xb", "y", "xc", "y", "xd", "xa"]


def test_batches_have_few_sizes():
    sizes = {len(chosen_steps([(0, whose("x"), (), 1)] * ready, 12)) for ready in range(1, 40)}
    assert sizes == {1, 2, 4, 8, 12}


def test_a_higher_priority_comes_before_turns():
    ready = [(0, whose("x"), (), 1), (0, whose("y"), (), 1), (3, whose("x"), (), 1), (3, whose("x"), (), 1)]
    assert chosen_steps(ready, 4) == [2, 3, 1, 0]


class Counting:
    """What the scheduler tells of its calls."""

    def __init__(self):
        self.rows: list[int] = []

    def __call__(self, call):
        self.rows.append(call.rows)


@pytest.fixture
def engine(tiny_record_path):
    with open_engine(tiny_record_path, threads=1) as runner:
        yield runner


def order() -> Order:
    return Order(id="o", kind=Kind.DENOISE, call=None, terms=Terms())


def run_together(scheduler: StepScheduler, feeds: list[dict], orders: list[Order] | None = None) -> list:
    """Outputs or errors of steps that are ready while the engine is held up by the first."""
    found: list = [None] * len(feeds)

    def run(index: int) -> None:
        try:
            with scheduler._turn:
                found[index] = scheduler.run(orders[index] if orders else order(), feeds[index])
        except DqError as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(feeds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def rows_of(feeds: dict, index: int) -> dict:
    return {name: value[index : index + 1] for name, value in feeds.items()}


def test_samples_at_different_steps_share_calls_and_get_what_they_get_alone(engine):
    feeds = example_inputs(call_of_record(engine.record), 12, 0)
    feeds["timestep"][:] = np.linspace(3, 900, 12)
    alone = [engine.run(rows_of(feeds, i)) for i in range(12)]
    counting = Counting()
    scheduler = StepScheduler([engine], Turn(), max_rows=5, observe=counting)
    with scheduler.picture():
        together = run_together(scheduler, [rows_of(feeds, i) for i in range(12)])
    scheduler.close()
    assert all(a["output"].tobytes() == b["output"].tobytes() for a, b in zip(alone, together, strict=True))
    assert sum(counting.rows) == 12
    assert max(counting.rows) <= 5


class FailsOn:
    """An engine that fails where one sample stands in the call: as one that runs out of memory, or a driver's fault."""

    def __init__(self, engine, timestep: float):
        self._engine, self._timestep = engine, timestep

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def run_checked(self, feeds):
        if (feeds["timestep"] == self._timestep).any():
            raise DqError("the engine failed")
        return self._engine.run_checked(feeds)


def test_a_call_that_fails_is_repeated_one_by_one(engine):
    feeds = example_inputs(call_of_record(engine.record), 4, 0)
    feeds["timestep"][:] = [10, 20, 30, 40]
    scheduler = StepScheduler([FailsOn(engine, 30.0)], Turn(), max_rows=4)
    found = run_together(scheduler, [rows_of(feeds, i) for i in range(4)])
    scheduler.close()
    assert [isinstance(one, DqError) for one in found] == [False, False, True, False]


def test_a_step_of_a_request_that_ended_is_not_run(engine):
    feeds = example_inputs(call_of_record(engine.record), 1, 0)
    ended = order()
    counting = Counting()
    scheduler = StepScheduler([engine], Turn(), max_rows=4, observe=counting)
    ended.on_end.append(scheduler.forget)
    with scheduler._changed:  # the engine's thread cannot take the step before it is forgotten
        thread = threading.Thread(target=lambda: run_together(scheduler, [feeds], [ended]))
        thread.start()
    ended.fail(Reason.CANCELLED, "gone")
    thread.join(10)
    scheduler.close()
    assert not thread.is_alive()


def test_steps_behind_the_end_are_stopped(engine):
    feeds = example_inputs(call_of_record(engine.record), 1, 0)
    scheduler = StepScheduler([engine], Turn(), max_rows=4)
    scheduler.close()
    with scheduler._turn, pytest.raises(Stopped, match="the server stops"):
        scheduler.run(order(), feeds)


class SlowAtFirst:
    """An engine that has to prepare for one sample, which takes until it is told to go on, or fails."""

    def __init__(self, engine, timestep: float, error: Exception | None = None):
        self._engine, self._timestep, self._error = engine, timestep, error
        self.began, self.go_on = threading.Event(), threading.Event()

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def preparation(self, feeds):
        return self._prepare if (feeds["timestep"] == self._timestep).any() else None

    def _prepare(self):
        self.began.set()
        assert self.go_on.wait(10)
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize("end", ["goes on", "fails", "its order ends", "the server stops"])
def test_other_steps_run_while_one_prepares_the_engine_for_its_sizes(engine, end):
    feeds = example_inputs(call_of_record(engine.record), 2, 0)
    feeds["timestep"][:] = [10, 20]
    slow = SlowAtFirst(engine, 10.0, DqError("there is no such size") if end == "fails" else None)
    scheduler = StepScheduler([slow], Turn(), max_rows=4)
    own, found = order(), []
    thread = threading.Thread(target=lambda: found.extend(run_together(scheduler, [rows_of(feeds, 0)], [own])))
    thread.start()
    assert slow.began.wait(10)
    with scheduler.picture():
        (other,) = run_together(scheduler, [rows_of(feeds, 1)])
    assert other["output"].tobytes() == engine.run(rows_of(feeds, 1))["output"].tobytes()
    if end == "its order ends":
        own.fail(Reason.CANCELLED, "gone")
    if end == "the server stops":
        scheduler.close()
    runs = engine.runs
    slow.go_on.set()
    thread.join(10)
    assert not thread.is_alive()
    words = {"fails": "there is no such size", "its order ends": "gone", "the server stops": "the server stops"}
    if end == "goes on":
        assert found[0]["output"].tobytes() == engine.run(rows_of(feeds, 0))["output"].tobytes()
    else:
        assert str(found[0]) == words[end]
        assert engine.runs == runs
    scheduler.close()


def test_an_engine_with_the_batch_in_front_joins_samples(engine):
    assert joins(engine)


def test_engines_side_by_side_give_each_sample_what_it_gets_alone(engine, tiny_record_path):
    feeds = example_inputs(call_of_record(engine.record), 12, 0)
    alone = [engine.run(rows_of(feeds, i)) for i in range(12)]
    before = engine.runs
    with open_engine(tiny_record_path, threads=1) as other:
        scheduler = StepScheduler([engine, other], Turn(), max_rows=2)
        together = run_together(scheduler, [rows_of(feeds, i) for i in range(12)])
        scheduler.close()
        assert engine.runs - before + other.runs >= 6
    assert all(a["output"].tobytes() == b["output"].tobytes() for a, b in zip(alone, together, strict=True))
