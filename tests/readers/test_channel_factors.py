"""Power-of-two factors of channels move into weights and `pre` without rounding."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_deploy.readers.channel_factors import differ_by_step, elected, shifted
from dq_deploy.record import Part


def part(channels, rng):
    return Part(
        pre=rng.uniform(0.5, 2, channels).astype(np.float32),
        scale=np.ones(1, np.float32),
        zero_point=np.zeros(1, np.int32),
        w_code=rng.integers(-8, 8, (1, 3, channels, 1, 1)).astype(np.int8),
        w_zero_point=rng.integers(-4, 4, (1, 3)).astype(np.int32),
        weight_scale=rng.uniform(0.1, 1, (1, 3)).astype(np.float32),
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 99))
def test_a_shifted_part_is_the_same_product_on_finer_codes(exponents, seed):
    before, e = part(len(exponents), np.random.default_rng(seed)), np.asarray(exponents)
    after = shifted(before, e)
    assert np.array_equal(after.pre, before.pre * 2.0**e)
    weight = after.q_weight(0)[:, :, 0, 0] * after.weight_scale[0][:, None]
    assert np.array_equal(weight, before.q_weight(0)[:, :, 0, 0] * before.weight_scale[0][:, None] / 2.0**e)


def test_a_shift_beyond_int8_is_declined():
    before = part(2, np.random.default_rng(0))
    assert shifted(before, np.asarray([5, 0])) is None


def test_the_most_frequent_factor_is_elected_and_the_change_counted():
    table = np.asarray([[0, 2], [0, 1], [3, 1], [0, 2]])
    assert differ_by_step(table)
    winner, changed = elected(table)
    assert winner.tolist() == [0, 1]  # of equally frequent ones the one that clips least
    assert changed == 3
    assert not differ_by_step(table[:1])
