"""Weight ranges with a zero point: codes within their bits, and a better fit where weights lean to one side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_deploy.methods.ranges.scales import (
    full_weight_range,
    quantized_weight,
    search_weight_range,
    search_weight_scale,
    weight_codes,
    weight_range,
)
from dq_deploy.numerics.arrays import F32


def dequantized(weight: F32, bits: int, *, asymmetric: bool) -> F32:
    code, scale, zero = quantized_weight(weight, bits, asymmetric=asymmetric)
    centred = code.astype(np.float32) - (0 if zero is None else zero[:, None])
    return (centred * scale[:, None]).astype(np.float32)


@pytest.mark.parametrize("width", [50, 1300])
def test_a_zero_point_fits_one_sided_rows_better(width: int) -> None:
    rng = np.random.default_rng(0)
    weight = np.abs(rng.standard_normal((6, width))).astype(np.float32)
    weight[3:] *= -1
    errors = [
        (np.abs(dequantized(weight, 4, asymmetric=a) - weight).astype(np.float64) ** 2.4).mean(axis=1)
        for a in (False, True)
    ]
    assert (errors[1] < 0.5 * errors[0]).all()


@settings(max_examples=40, deadline=None)
@given(bits=st.integers(2, 8), shift=st.floats(-5, 5), seed=st.integers(0, 1000))
def test_codes_keep_their_bits_and_less_the_zero_point_fit_int8(bits: int, shift: float, seed: int) -> None:
    weight = (np.random.default_rng(seed).standard_normal((4, 9)) + shift).astype(np.float32)
    code, _, zero = quantized_weight(weight, bits, asymmetric=True)
    assert zero is not None
    low, high = weight_range(bits)
    for values in (code, zero):
        assert values.min() >= low
        assert values.max() <= high
    centred = code.astype(int) - zero[:, None]
    assert centred.min() >= -128
    assert centred.max() <= 127


def test_eight_bits_have_no_zero_points_because_int8_would_not_hold_them() -> None:
    weight = np.abs(np.random.default_rng(0).standard_normal((3, 20))).astype(np.float32)
    scale, zero = search_weight_range(weight, 8)
    assert not zero.any()
    np.testing.assert_array_equal(scale, search_weight_scale(weight, 8))


def test_the_full_range_clips_nothing_and_a_row_of_zeros_has_scale_one() -> None:
    weight = np.array([[-1.0, 0.0, 3.0], [0.0, 0.0, 0.0], [2.0, 4.0, 6.0]], np.float32)
    scale, zero = full_weight_range(weight, 4)
    assert scale.tolist() == pytest.approx([4 / 15, 1.0, 6 / 15])
    assert zero[2] == -8
    code = weight_codes(weight, scale, 4, zero)
    back = (code - zero[:, None]) * scale[:, None]
    assert np.abs(back - weight).max() <= scale.max() / 2
