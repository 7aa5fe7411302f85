from __future__ import annotations

import numpy as np
import pytest

from dq_deploy.errors import InputError
from dq_deploy.quality import interval_of_mean, interval_of_paired_difference, interval_over_seeds


def test_the_interval_has_the_width_of_the_normal_one():
    x = np.random.default_rng(1).normal(5, 2, 400)
    found = interval_of_mean(x)
    assert found.low < found.mean < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * x.std() / 20, rel=0.1)


def test_the_same_seed_gives_the_same_interval():
    x = np.arange(50)
    assert interval_of_mean(x, seed=3) == interval_of_mean(x, seed=3)
    assert interval_of_mean(x, seed=3) != interval_of_mean(x, seed=4)


def test_pairing_removes_what_the_pairs_share():
    rng = np.random.default_rng(2)
    shared, own = rng.normal(0, 10, 200), rng.normal(0, 0.1, 200)
    paired = interval_of_paired_difference(shared + 1 + own, shared)
    assert paired.low > 0.9
    assert paired.high < 1.1


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    inside = 0
    for trial in range(200):
        found = interval_of_mean(rng.normal(0, 1, 60), resamples=300, seed=trial)
        inside += found.low <= 0 <= found.high
    assert 0.88 <= inside / 200 <= 0.99


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [np.inf]])
def test_values_that_have_no_mean_are_refused(values):
    with pytest.raises(InputError, match="finite"):
        interval_of_mean(values)


def test_unequal_lengths_are_no_pairs():
    with pytest.raises(InputError, match="pairs"):
        interval_of_paired_difference([1.0, 2.0], [1.0])


def test_seeds_that_differ_widen_the_interval_over_seeds_and_images():
    rng = np.random.default_rng(5)
    images, noise = rng.normal(0, 1, 200), rng.normal(0, 0.1, (4, 200))
    alike = interval_over_seeds(images + noise)
    apart = interval_over_seeds(images + noise + np.array([[-1], [0], [1], [2]]))
    alone = interval_of_mean(images)
    assert alike.high - alike.low == pytest.approx(alone.high - alone.low, rel=0.15)
    assert apart.high - apart.low > 5 * (alike.high - alike.low)
    assert apart.mean == pytest.approx((images + noise).mean() + 0.5)
    assert apart.low < apart.mean < apart.high


@pytest.mark.parametrize("values", [[[1.0, 2.0]], [1.0, 2.0], [[], []], [[1.0], [np.nan]]])
def test_one_seed_has_no_interval_over_seeds(values):
    with pytest.raises(InputError, match="seeds >= 2"):
        interval_over_seeds(values)
