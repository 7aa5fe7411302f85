"""Comparisons of sizes that follow the batch hold for every batch from 2."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dq_deploy.native.check.lines import BATCH, FIRST, Polynomial, is_size, number, terms_of

lines = st.lists(st.integers(-6, 6), min_size=1, max_size=3).map(number)


def at(value, batch):
    """A polynomial's value at a batch."""
    return sum(term * (batch - FIRST) ** power for power, term in enumerate(terms_of(value)))


@given(lines, lines)
def test_sums_and_products_are_those_at_each_batch(a, b):
    for batch in (2, 3, 7):
        assert at(a + b, batch) == at(a, batch) + at(b, batch)
        assert at(a - b, batch) == at(a, batch) - at(b, batch)
        assert at(a * b, batch) == at(a, batch) * at(b, batch)


@given(lines, lines)
def test_what_is_said_to_hold_holds_for_every_batch(a, b):
    batches = range(FIRST, 40)
    if a >= b:
        assert all(at(a, batch) >= at(b, batch) for batch in batches)
    if a <= b:
        assert all(at(a, batch) <= at(b, batch) for batch in batches)
    if not a < b:
        assert all(at(a, batch) >= at(b, batch) for batch in batches)
    if not a > b:
        assert all(at(a, batch) <= at(b, batch) for batch in batches)
    assert (a == b) == all(at(a, batch) == at(b, batch) for batch in batches)
    if is_size(a):
        assert a == 1 or all(at(a, batch) > 1 for batch in batches)


def test_what_does_not_follow_the_batch_is_a_number():
    assert BATCH - BATCH == 0
    assert type(BATCH - BATCH + 3) is int
    assert is_size(BATCH)
    assert not is_size(BATCH - 1)
    assert repr(3 * BATCH) == "6 + 3*(B-2)^1"
    assert Polynomial((2, 1)) == BATCH
