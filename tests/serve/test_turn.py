"""One thread has the turn, in the order of asking; a thread that waits for something else wakes with it."""

from __future__ import annotations

import threading

from dq_deploy.serve.turn import Turn


def test_threads_are_inside_one_after_another():
    turn, inside, most = Turn(), [], []

    def work(number):
        for _ in range(50):
            with turn:
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) == 400


def test_the_turn_is_given_in_the_order_of_asking():
    turn, order = Turn(), []
    events = [threading.Event() for _ in range(4)]
    with turn:
        for event in events:
            turn.grant(event)
        assert not any(event.is_set() for event in events)
    for number, event in enumerate(events):
        assert event.is_set()
        assert not any(later.is_set() for later in events[number + 1 :])
        order.append(number)
        turn.give_back()
    with turn:
        assert order == [0, 1, 2, 3]
