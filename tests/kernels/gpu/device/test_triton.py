"""Means and deviations without float64 are the bits of those with it: ties, their neighbours, subnormals, any count."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tests.kernels.gpu import bridge
from tests.kernels.gpu.device.sums import MOST, statistics_of, sums_of, wrong_statistics

assert bridge


@pytest.mark.parametrize("count", [1, 3, 320, 4096, 40960, 1000003, MOST])
def test_both_are_what_float64_gives(count):
    assert wrong_statistics(count) == 0


def test_a_mean_is_the_exact_quotient_rounded_once():
    """By fractions, so that float64 is not its own witness."""
    rng = np.random.default_rng(0)
    for count in (7, 40960):
        total, e = sums_of("ties", count, rng)
        mean, _ = statistics_of(total, e, count, 1e-5)
        for found, t, exponent in list(zip(mean, total.tolist(), e.tolist(), strict=True))[:200]:
            exact = Fraction(t, count) * Fraction(2) ** (exponent - 30)
            near = [np.nextafter(found, np.float32(s * np.inf)) for s in (-1, 1)]
            gap = abs(Fraction(float(found)) - exact)
            assert all(gap <= abs(Fraction(float(other)) - exact) for other in near)
            if gap in [abs(Fraction(float(other)) - exact) for other in near]:
                assert found.view(np.int32) % 2 == 0
