from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_deploy.errors import InputError
from dq_deploy.quality import (
    frechet_beside_reference,
    frechet_distance,
    frechet_interval,
    kernel_distance,
    real_against_real,
)


def normal(seed: int, count: int, features: int, *, mean: float = 0.0, scale: float = 1.0):
    return np.random.default_rng(seed).standard_normal((count, features)) * scale + mean


def dense_frechet(x, y):
    """The formula as printed, through a dense D x D matrix square root."""
    from scipy.linalg import sqrtm

    c_x, c_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c_x + c_y - 2 * np.real(sqrtm(c_x @ c_y)))


def test_equal_sets_have_frechet_distance_zero():
    for count in (20, 200):
        x = normal(0, count, 40, scale=3)
        assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10 * (x * x).sum())
        assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-10 * (x * x).sum())


def with_moments(x, mean, root):
    """Rows moved so that their mean and covariance are `mean` and root root^T, exactly."""
    x = x - x.mean(0)
    whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return whitened @ root.T + mean


def test_the_distance_of_two_gaussians_is_the_closed_form():
    # for covariances that commute: |mu_x - mu_y|^2 + sum (sigma_x - sigma_y)^2
    turn = np.linalg.qr(normal(1, 4, 4))[0]
    sigma_x, sigma_y = np.array([1.0, 2, 3, 4]), np.array([2.0, 2, 1, 0.5])
    x = with_moments(normal(2, 60, 4), np.arange(4), turn * sigma_x)
    y = with_moments(normal(3, 90, 4), np.ones(4), turn * sigma_y)
    expected = ((np.arange(4) - 1) ** 2).sum() + ((sigma_x - sigma_y) ** 2).sum()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)


@settings(max_examples=25, deadline=None)
@given(
    count_x=st.integers(2, 40), count_y=st.integers(2, 40), features=st.integers(1, 30), seed=st.integers(0, 2**32 - 1)
)
def test_it_is_symmetric_and_a_rotation_or_a_shift_of_both_changes_nothing(count_x, count_y, features, seed):
    x, y = normal(seed, count_x, features), normal(seed + 1, count_y, features, mean=0.3, scale=2)
    value = frechet_distance(x, y)
    turn = np.linalg.qr(normal(seed + 2, features, features))[0]
    assert frechet_distance(y, x) == pytest.approx(value, rel=1e-9, abs=1e-9)
    assert frechet_distance(x @ turn + 7, y @ turn + 7) == pytest.approx(value, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("count_x", "count_y"), [(12, 15), (12, 80), (80, 90)])
def test_few_images_give_what_the_dense_formula_gives(count_x, count_y):
    x, y = normal(0, count_x, 30), normal(1, count_y, 30, mean=0.2, scale=1.5)
    # the dense square root of a singular product is exact to about the square root of rounding
    assert frechet_distance(x, y) == pytest.approx(dense_frechet(x, y), rel=1e-4)


def test_fewer_images_give_a_larger_distance_and_real_against_real_shows_it():
    real = normal(0, 800, 60)
    few, many = (real_against_real(real, count=count, splits=3) for count in (40, 400))
    assert few.mean > 5 * many.mean > 0
    assert many.count == 400
    assert real_against_real(real, count=40, splits=3) == few
    with pytest.raises(InputError, match="twice as many"):
        real_against_real(real, count=401)


def test_the_interval_lies_around_the_distance_and_repeats_with_its_seed():
    x, y = normal(0, 120, 10, mean=0.5), normal(1, 120, 10)
    found = frechet_interval(x, y, resamples=30, seed=4)
    assert found.low < found.mean == frechet_distance(x, y) < found.high
    assert found == frechet_interval(x, y, resamples=30, seed=4)


def test_the_interval_is_about_as_wide_as_other_draws_scatter():
    def draw(seed):
        return normal(seed, 150, 8, mean=0.6), normal(seed + 1000, 150, 8)

    found = frechet_interval(*draw(0), resamples=200)
    others = np.std([frechet_distance(*draw(seed)) for seed in range(1, 200)])
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(others, rel=0.35)


def test_a_paired_difference_is_narrower_than_its_two_distances():
    reference, y = normal(0, 100, 12, mean=0.4), normal(1, 100, 12)
    x = reference + 0.05 * normal(2, 100, 12)
    own, of_reference, difference = frechet_beside_reference(x, reference, y, resamples=40)
    assert difference.mean == pytest.approx(own.mean - of_reference.mean)
    assert difference.low < 0 < difference.high
    assert difference.high - difference.low < 0.5 * (own.high - own.low)
    nothing = frechet_beside_reference(reference, reference, y, resamples=5)[2]
    assert (nothing.low, nothing.mean, nothing.high) == (0, 0, 0)


def test_the_kernel_distance_is_near_zero_for_one_distribution_and_not_for_two():
    x, same, other = normal(0, 300, 16), normal(1, 250, 16), normal(2, 250, 16, mean=0.5)
    near, far = kernel_distance(x, same), kernel_distance(x, other)
    assert near.interval.low < 0 < near.interval.high
    assert abs(near.interval.mean) < 3 * near.subset_sd
    assert 0 < far.interval.low < far.interval.mean < far.interval.high
    assert (near.subset_size, near.subsets) == (125, 100)
    assert kernel_distance(x, same) == near


def test_the_kernel_distance_is_its_formula_written_out():
    x, y = normal(0, 5, 3), normal(1, 4, 3)

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    within_x = sum(k(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
    within_y = sum(k(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
    across = sum(k(a, b) for a in x for b in y) / 20
    found = kernel_distance(x, y, subset_size=4)
    assert found.interval.mean == pytest.approx(within_x + within_y - 2 * across, rel=1e-12)
    assert found.interval.low < found.interval.high  # some copies of so few images are of one image alone


def test_large_sets_are_cut_for_the_kernel_distance():
    found = kernel_distance(normal(0, 60, 4), normal(1, 70, 4), images=50)
    assert found.interval.count == 50


@pytest.mark.parametrize("measure", [frechet_distance, frechet_interval, kernel_distance])
def test_sets_that_cannot_be_compared_are_refused(measure):
    x = normal(0, 10, 4)
    with pytest.raises(InputError, match="one D"):
        measure(x, normal(0, 10, 5))
    with pytest.raises(InputError, match="at least two"):
        measure(x, x[:1])
    with pytest.raises(InputError, match="finite"):
        measure(x, np.full((10, 4), np.nan))


def test_impossible_settings_are_refused():
    x = normal(0, 10, 4)
    with pytest.raises(InputError, match="subset"):
        kernel_distance(x, x, subset_size=11)
    with pytest.raises(InputError, match="resamples"):
        frechet_interval(x, x, resamples=1)
    with pytest.raises(InputError, match="pairs"):
        frechet_beside_reference(x, x[:5], x)
