"""Layer normalisation and codes for up to three consumers on the GPU. Compiled and interpreted, never run.

A program holds whole rows in registers: x is read once, all three passes of the statistics go over registers.
"""

import triton
import triton.language as tl

from dq_kernels.gpu.device.blocks import (
    exponent_of,
    fixed_point,
    flag,
    is_finite,
    squares,
    write_codes,
)
from dq_kernels.gpu.device.statistics import mean_of, rstd_of


@triton.jit
def row_statistics(v, mask, channels, eps):
    """Mean, rstd and the peak distance of each row of a block; values outside `mask` do not count."""
    low = tl.min(tl.where(mask, v, float("inf")), axis=1)
    high = tl.max(tl.where(mask, v, float("-inf")), axis=1)
    e = exponent_of(tl.maximum(tl.abs(low), tl.abs(high)))
    mean = mean_of(tl.sum(tl.where(mask, fixed_point(v, e[:, None]), 0), axis=1), e, channels)
    peak = tl.maximum(tl.abs(low - mean), tl.abs(high - mean))
    e2 = exponent_of(peak)
    total = tl.sum(tl.where(mask, squares(v, mean[:, None], e2[:, None]), 0), axis=1)
    return mean, rstd_of(total, e2, channels, eps), peak


@triton.jit
def layer_norm_quantize_kernel(
    x,
    gamma,
    beta,
    y,
    step,
    nan_seen,
    codes_0,
    pre_0,
    inverse_0,
    zero_0,
    codes_1,
    pre_1,
    inverse_1,
    zero_1,
    codes_2,
    pre_2,
    inverse_2,
    zero_2,
    rows,
    channels,
    x_pitch,
    y_pitch,
    eps_bits,
    steps_0,
    first_0,
    channels_0,
    pitch_0,
    q_min_0,
    q_max_0,
    steps_1,
    first_1,
    channels_1,
    pitch_1,
    q_min_1,
    q_max_1,
    steps_2,
    first_2,
    channels_2,
    pitch_2,
    q_min_2,
    q_max_2,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Y = layer_norm(x) and its codes; grid (row blocks, samples); y and each codes may be None."""
    sample = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    row_fits = row < rows
    channel_fits = channel < channels
    mask = row_fits[:, None] & channel_fits[None, :]
    x += sample.to(tl.int64) * rows * x_pitch
    v = tl.load(x + row[:, None] * x_pitch + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    eps = eps_bits.to(tl.int64).to(tl.float64, bitcast=True)
    # rows beyond the last one are statistics of zeros, so that nothing is divided by nothing
    mean, rstd, peak = row_statistics(v, channel_fits[None, :] & (row[:, None] >= 0), channels, eps)
    a = rstd[:, None] * tl.load(gamma + channel, mask=channel_fits, other=0.0)[None, :]
    z = (v - mean[:, None]) * a + tl.load(beta + channel, mask=channel_fits, other=0.0)[None, :]
    bad = (~(is_finite(v) & is_finite(a) & is_finite(peak)[:, None])) & mask
    if y is not None:
        to = y + sample.to(tl.int64) * rows * y_pitch
        tl.store(to + row[:, None] * y_pitch + channel[None, :], z.to(y.dtype.element_ty), mask=mask)
    part_0 = (codes_0, pre_0, inverse_0, zero_0, steps_0, first_0, channels_0, pitch_0, q_min_0, q_max_0)
    part_1 = (codes_1, pre_1, inverse_1, zero_1, steps_1, first_1, channels_1, pitch_1, q_min_1, q_max_1)
    part_2 = (codes_2, pre_2, inverse_2, zero_2, steps_2, first_2, channels_2, pitch_2, q_min_2, q_max_2)
    bad |= write_codes(z, row, row_fits, channel, channel >= 0, sample, rows, step, part_0)
    bad |= write_codes(z, row, row_fits, channel, channel >= 0, sample, rows, step, part_1)
    bad |= write_codes(z, row, row_fits, channel, channel >= 0, sample, rows, step, part_2)
    flag(nan_seen, bad)
