"""Sums that the statistics of norms are taken of: ties and their neighbours, subnormals, the largest; any device."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from dq_kernels.gpu.device.statistics import mean_of, rstd_of

MOST = 1 << 22
BLOCK = 1 << 15
KINDS = ("any", "ties", "small sums", "least floats", "largest")


@triton.jit
def statistics(total, e, mean, rstd, count, eps_bits, SIZE: tl.constexpr):
    """Both of a block of sums."""
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    sums, exponents = tl.load(total + i), tl.load(e + i)
    eps = eps_bits.to(tl.int64).to(tl.float64, bitcast=True)
    tl.store(mean + i, mean_of(sums, exponents, count))
    tl.store(rstd + i, rstd_of(tl.abs(sums), exponents, count, eps))


def statistics_of(total, e, count, eps, device="cpu"):
    """Means and deviations by the kernel's functions, as numpy arrays."""
    arrays = [torch.from_numpy(np.ascontiguousarray(v)).to(device) for v in (total, e.astype(np.int32))]
    mean, rstd = (torch.empty(BLOCK, dtype=torch.float32, device=device) for _ in range(2))
    bits = int(np.float64(eps).view(np.int64))
    size = BLOCK if device == "cpu" else 1024  # the interpreter takes its time a program, a GPU a thread
    statistics[BLOCK // size,](*arrays, mean, rstd, count, bits, SIZE=size, enable_fp_fusion=False)
    return mean.cpu().numpy(), rstd.cpu().numpy()


def wrong_statistics(count, device="cpu"):
    """Means and deviations, of all kinds of sums, that are not the bits that float64 gives."""
    rng = np.random.default_rng(count)
    wrong = 0
    for kind in KINDS:
        total, e = sums_of(kind, count, rng)
        total = np.clip(total, -(count << 30), count << 30)
        for eps in (1e-5, 0.0, 1e-12):
            mean, rstd = statistics_of(total, e, count, eps, device)
            with np.errstate(all="ignore"):
                wide = (total.astype(np.float64) * 2.0 ** (e - 30.0) / count).astype(np.float32)
                variance = np.abs(total).astype(np.float64) * 2.0 ** (2.0 * (e - 15)) / count
                far = (1.0 / np.sqrt(variance + eps)).astype(np.float32)
            pairs = ((mean, wide), (rstd, far))
            wrong += sum(int((found.view(np.int32) != wanted.view(np.int32)).sum()) for found, wanted in pairs)
    return wrong


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
