"""Packing, requantization and the bound over pairs of products."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from dq_deploy import numerics
from dq_deploy.errors import InputError, RecordError

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-8, 7), min_size=0, max_size=33))
def test_packed_codes_come_back_and_take_half_the_bytes(values):
    codes = np.array(values, np.int8)
    packed = numerics.pack_nibbles(codes)
    assert packed.nbytes == (len(values) + 1) // 2
    np.testing.assert_array_equal(numerics.unpack_nibbles(packed, codes.shape), codes)


def test_the_first_code_lies_in_the_low_nibble():
    np.testing.assert_array_equal(numerics.pack_nibbles(np.array([1, -1, -8], np.int8)), [0xF1, 0x08])


def test_packing_refuses_wide_codes_wrong_lengths_and_a_used_spare_nibble():
    with pytest.raises(RecordError, match=r"expected \[-8, 7\]"):
        numerics.pack_nibbles(np.array([8], np.int8))
    with pytest.raises(RecordError, match="expected 2 for shape"):
        numerics.unpack_nibbles(np.zeros(3, np.uint8), (2, 2))
    with pytest.raises(RecordError, match="spare nibble"):
        numerics.unpack_nibbles(np.array([0x11], np.uint8), (1,))


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(0, 255))
def test_requantized_codes_are_within_half_a_step(seed, z):
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.01, 1, 2).astype(np.float32)
    zero = np.array([z, 255 - z], np.int32)
    step = np.array([1, 0])
    y = (rng.standard_normal((2, 3, 4)) * 20).astype(np.float32)
    codes = numerics.requantize(y, out_scale=scale, out_zero_point=zero, step=step)
    assert codes.min() >= 0
    assert codes.max() <= 255
    back = numerics.dequantize(codes, scale=scale, zero_point=zero, step=step)
    np.testing.assert_array_equal(numerics.requantize(back, out_scale=scale, out_zero_point=zero, step=step), codes)
    inside = (codes > 0) & (codes < 255)
    half = (scale[step] / 2).reshape(2, 1, 1) * np.float32(1.001)
    assert (np.abs(back - y) <= half)[inside].all()


def test_requantization_rounds_before_it_adds_the_zero_point():
    y = np.array([[0.5, 1.5, 2.5, -1e30, 1e30]], np.float32)
    one = np.ones(1, np.float32)
    codes = numerics.requantize(y, out_scale=one, out_zero_point=np.array([1], np.int32), step=np.zeros(1, int))
    np.testing.assert_array_equal(codes, [[1, 3, 3, 0, 255]])
    with pytest.raises(InputError, match="NaN"):
        numerics.requantize(y * np.nan, out_scale=one, out_zero_point=np.ones(1, np.int32), step=np.zeros(1, int))


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 3), st.integers(1, 5))
def test_worst_pair_product_bounds_every_adjacent_pair(seed, kernel, channels):
    rng = np.random.default_rng(seed)
    w = rng.integers(-128, 128, (2, channels, kernel, kernel)).astype(np.int16)
    bound = numerics.worst_pair_product(w, 255)
    for rows in (w.reshape(2, -1), w.transpose(0, 2, 3, 1).reshape(2, -1)):
        for a, b in zip(rows.T, rows.T[1:], strict=False):
            assert 255 * np.abs(a.astype(int) + b).max() <= bound
    assert bound <= 255 * 256
