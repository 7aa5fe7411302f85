"""Counts of calibration inputs by step: they add up, keep their bounds, and any prefix of the order has its share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dq_deploy.calibration import choose_steps, counts_of_steps, normal_biased_weights
from dq_deploy.errors import OptionError

WEIGHTS = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=40)


@given(WEIGHTS, st.integers(4, 200))
def test_counts_add_up_and_keep_their_bounds(weights: list[float], samples: int) -> None:
    choice = choose_steps("tdac", np.array(weights), samples=samples)
    assert choice.counts.sum() == samples * len(weights)
    assert choice.counts.min() >= max(4, samples // 8)
    assert choice.counts.max() <= 4 * samples
    assert choice.weights.sum() == pytest.approx(1)


@given(WEIGHTS, st.integers(4, 200))
def test_a_heavier_step_never_gets_fewer_inputs(weights: list[float], samples: int) -> None:
    counts = choose_steps("tdac", np.array(weights), samples=samples).counts
    by_weight = counts[np.argsort(weights, kind="stable")]
    assert (np.diff(by_weight) >= -1).all()  # the last input goes by remainder


def test_counts_are_in_proportion_where_no_bound_is_met() -> None:
    assert counts_of_steps(np.array([1.0, 2, 3, 4]), 100, least=1, most=100).tolist() == [10, 20, 30, 40]
    assert counts_of_steps(np.array([0.0, 1, 1]), 30, least=4, most=100).tolist() == [4, 13, 13]
    assert counts_of_steps(np.array([0.0, 0, 1]), 30, least=4, most=12).tolist() == [9, 9, 12]


def test_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(OptionError, match="expected 8 to 20"):
        counts_of_steps(np.ones(2), 30, least=4, most=10)
    with pytest.raises(OptionError, match="samples is 3, expected at least 4"):
        choose_steps("tdac", np.ones(2), samples=3)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=12), st.integers(8, 40), st.integers(0, 3))
def test_every_prefix_of_the_order_holds_about_its_share_of_every_step(
    weights: list[float], samples: int, seed: int
) -> None:
    choice = choose_steps("tdac", np.array(weights), samples=samples)
    step, trajectory = choice.order(seed)
    assert np.bincount(step).tolist() == choice.counts.tolist()
    assert len(set(zip(step.tolist(), trajectory.tolist(), strict=True))) == len(step)
    assert trajectory.max() < choice.trajectories
    for length in {1, len(step) // 3, len(step) // 2, len(step)}:
        seen = np.bincount(step[:length], minlength=len(weights))
        wanted = choice.counts * length / len(step)
        assert np.abs(seen - wanted).max() <= 1 + choice.counts.max() * len(weights) / len(step)


def test_trajectories_are_used_alike() -> None:
    _, trajectory = choose_steps("tdac", np.arange(1.0, 9), samples=16).order(0)
    assert np.ptp(np.bincount(trajectory)) <= 1


def test_fewer_trajectories_scale_all_counts_down() -> None:
    choice = choose_steps("tdac", np.array([1.0, 2, 4, 1]), samples=32)
    small = choice.within(choice.trajectories // 2)
    assert small.trajectories <= choice.trajectories // 2
    assert small.counts.sum() == choice.counts.sum() // 2
    assert np.abs(small.counts - choice.counts / 2).max() <= 2
    assert choice.within(choice.trajectories) is choice
    assert choice.within(1).counts.tolist() == [1, 1, 1, 1]


def test_normal_weights_lie_on_the_less_noisy_half() -> None:
    weights = normal_biased_weights(20)
    assert weights.argmax() in (7, 8)
    assert weights[:10].sum() > weights[10:].sum()
