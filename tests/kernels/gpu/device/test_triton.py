"""Means and deviations without float64 are the bits of those with it: ties, their neighbours, subnormals, any count."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from dq_kernels.gpu.device.statistics import mean_of, rstd_of

from tests.kernels.gpu import bridge

assert bridge
MOST = 1 << 22
BLOCK = 1 << 15
KINDS = ("any", "ties", "small sums", "least floats", "largest")


@triton.jit
def statistics(total, e, mean, rstd, count, eps_bits, SIZE: tl.constexpr):
    """Both of a block of sums."""
    i = tl.arange(0, SIZE)
    sums, exponents = tl.load(total + i), tl.load(e + i)
    eps = eps_bits.to(tl.int64).to(tl.float64, bitcast=True)
    tl.store(mean + i, mean_of(sums, exponents, count))
    tl.store(rstd + i, rstd_of(tl.abs(sums), exponents, count, eps))


def sums_of(kind, count, rng):
    """Sums of `count` integers of at most 2^30, and the exponents that they stand for."""
    most = count << 30
    e = rng.integers(-20, 20, BLOCK)
    if kind == "small sums":
        return rng.integers(-3 * count, 3 * count + 1, BLOCK), e
    if kind == "largest":
        return np.where(rng.random(BLOCK) < 0.5, most, -most) + rng.integers(-3, 4, BLOCK), rng.integers(
            120, 129, BLOCK
        )
    total = rng.integers(-most, most + 1, BLOCK) >> rng.integers(0, 40, BLOCK)
    if kind == "least floats":
        return total, rng.integers(-90, -56, BLOCK)
    if kind == "ties":  # an odd multiple of half a last place of a float32, times the count, and its neighbours
        places = rng.integers(0, 6, BLOCK)
        halves = (2 * rng.integers(1 << 23, 1 << 24, BLOCK) + 1) << places
        total = halves * count + rng.integers(-1, 2, BLOCK)
    return total, e


@pytest.mark.parametrize("count", [1, 3, 320, 4096, 40960, 1000003, MOST])
def test_both_are_what_float64_gives(count):
    rng = np.random.default_rng(count)
    for kind in KINDS:
        total, e = sums_of(kind, count, rng)
        total = np.clip(total, -(count << 30), count << 30)
        for eps in (1e-5, 0.0, 1e-12):
            mean, rstd = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
            arrays = [torch.from_numpy(v) for v in (total, e.astype(np.int32), mean, rstd)]
            statistics[1,](*arrays, count, int(np.float64(eps).view(np.int64)), SIZE=BLOCK)
            with np.errstate(all="ignore"):
                wide = total.astype(np.float64) * 2.0 ** (e - 30.0) / count
                variance = np.abs(total).astype(np.float64) * 2.0 ** (2.0 * (e - 15)) / count
                bridge.assert_same(mean, wide.astype(np.float32))
                bridge.assert_same(rstd, (1.0 / np.sqrt(variance + eps)).astype(np.float32))


def test_a_mean_is_the_exact_quotient_rounded_once():
    """By fractions, so that float64 is not its own witness."""
    rng = np.random.default_rng(0)
    for count in (7, 40960):
        total, e = (part[:200] for part in sums_of("ties", count, rng))
        mean = np.empty(BLOCK, np.float32)
        arrays = [torch.from_numpy(np.resize(v, BLOCK)) for v in (total, e.astype(np.int32))]
        statistics[1,](*arrays, torch.from_numpy(mean), torch.empty(BLOCK), count, 0, SIZE=BLOCK)
        for found, t, exponent in zip(mean, total.tolist(), e.tolist(), strict=False):
            exact = Fraction(t, count) * Fraction(2) ** (exponent - 30)
            near = [np.nextafter(found, np.float32(s * np.inf)) for s in (-1, 1)]
            gap = abs(Fraction(float(found)) - exact)
            assert all(gap <= abs(Fraction(float(other)) - exact) for other in near)
            if gap in [abs(Fraction(float(other)) - exact) for other in near]:
                assert found.view(np.int32) % 2 == 0
