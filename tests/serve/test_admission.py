"""Which picture begins next: priorities, fair shares, deadlines, the order of arrival, and how many may wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dq_deploy.models.pipeline import PipelineCall
from dq_deploy.serve.admission import Admission, QueueFullError
from dq_deploy.serve.orders import Kind, Order, Terms


def order(name: str, n: int = 1, **terms) -> Order:
    return Order(id=name, kind=Kind.GENERATION, call=PipelineCall(count=n), terms=Terms(**terms))


def admission(**changes) -> Admission:
    return Admission(**{"places": 2, "most": 6, "capacity": 20, **changes})


def begun(queue: Admission, times: int) -> list[str]:
    return [found[0].id for _ in range(times) if (found := queue.next()) is not None]


def test_pictures_begin_in_the_order_of_arrival():
    queue = admission(places=9, most=9)
    for name in "abc":
        queue.add(order(name, client=name))
    assert begun(queue, 4) == ["a", "b", "c"]


def test_a_higher_priority_goes_first():
    queue = admission()
    queue.add(order("low", priority=-1, client="x"))
    queue.add(order("high", priority=5, client="y"))
    assert begun(queue, 2) == ["high", "low"]


def test_a_client_with_many_pictures_does_not_hold_up_one_with_one():
    queue = admission()
    queue.add(order("many", 10, client="x"))
    assert begun(queue, 3) == ["many", "many"]
    queue.add(order("one", client="y"))
    assert begun(queue, 2) == ["one"]


def test_clients_take_turns():
    queue = admission(places=6, most=6)
    queue.add(order("x", 5, client="x"))
    queue.add(order("y", 5, client="y"))
    assert begun(queue, 6) == ["x", "y", "x", "y", "x", "y"]


def test_a_user_with_many_pictures_does_not_hold_up_one_with_one():
    queue = admission()
    queue.add(order("many", 10, client="x", user="a"))
    assert begun(queue, 3) == ["many", "many"]
    queue.add(order("one", client="x", user="b"))
    assert begun(queue, 2) == ["one"]


def test_a_client_that_names_many_users_takes_no_place_of_other_clients():
    queue = admission(places=2, most=6, capacity=100)
    for number in range(9):
        queue.add(order(f"x{number}", client="x", user=str(number)))
    assert begun(queue, 9) == ["x0", "x1", "x2", "x3"]  # two beyond the places
    for name in "yz":
        queue.add(order(name, 2, client=name, user="one"))
    assert begun(queue, 9) == ["y", "z"]  # at once
    queue.over(order("x0", client="x", user="0"))
    assert begun(queue, 9) == []


def test_a_higher_priority_does_not_wait_for_a_place():
    queue = admission()
    queue.add(order("usual", 5, client="x"))
    assert begun(queue, 5) == ["usual", "usual"]
    queue.add(order("urgent", client="x", priority=1))
    assert begun(queue, 5) == ["urgent"]


def test_of_one_client_what_must_be_done_first_begins_first():
    queue = admission()
    queue.add(order("later", time_limit_s=60))
    queue.add(order("sooner", time_limit_s=5))
    assert begun(queue, 2) == ["sooner", "later"]


def test_more_pictures_than_may_wait_are_refused_whole():
    queue = admission(capacity=3, places=1)
    queue.add(order("first", 4))
    with pytest.raises(QueueFullError, match="4 pictures wait and 1 were asked for, of at most 3"):
        queue.add(order("second"))
    assert queue.pictures_waiting == 4


def test_what_was_removed_does_not_begin():
    queue = admission()
    gone, stays = order("gone", 3), order("stays")
    queue.add(gone)
    queue.add(stays)
    assert begun(queue, 1) == ["gone"]
    queue.remove(gone)
    queue.over(gone)
    assert begun(queue, 3) == ["stays"]


def test_positions_count_the_pictures_before():
    queue = admission()
    for name, n in (("a", 3), ("b", 2), ("c", 1)):
        queue.add(order(name, n, client=name))
    assert [(o.id, before) for o, before in queue.positions()] == [("a", 0), ("b", 3), ("c", 5)]


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.integers(-3, 3), st.integers(1, 4)), max_size=12))
def test_every_picture_begins_once_and_never_more_at_a_time_than_allowed(requests):
    queue = admission(capacity=100)
    orders = [order(str(i), n, client=client, priority=p) for i, (client, p, n) in enumerate(requests)]
    for one in orders:
        queue.add(one)
    begun_pictures, running = [], []
    while True:
        found = queue.next()
        if found is not None:
            begun_pictures.append((found[0].id, found[1]))
            running.append(found[0])
        elif running:
            queue.over(running.pop(0))
        else:
            break
        assert queue.drawn == len(running) <= queue.most
    assert sorted(begun_pictures) == sorted((one.id, i) for one in orders for i in range(one.count))
