"""Codes of a float tensor on the GPU: one read of x, one write of int8 codes. Compiled and interpreted, never run."""

import triton
import triton.language as tl

from dq_kernels.gpu.device.blocks import flag, write_codes


@triton.jit
def quantize_kernel(
    x,
    codes,
    pre,
    inverse_scale,
    zero_point,
    step,
    nan_seen,
    rows,
    x_pitch,
    first,
    channels,
    code_pitch,
    steps,
    q_min,
    q_max,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Codes of x[sample, rows, first : first + channels]; grid (row blocks, channel blocks, samples)."""
    sample = tl.program_id(2)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    own = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    row_fits = row < rows
    x += sample.to(tl.int64) * rows * x_pitch + first
    mask = row_fits[:, None] & (own < channels)[None, :]
    v = tl.load(x + row[:, None] * x_pitch + own[None, :], mask=mask, other=0.0).to(tl.float32)
    part = (codes, pre, inverse_scale, zero_point, steps, 0, channels, code_pitch, q_min, q_max)
    flag(nan_seen, write_codes(v, row, row_fits, own, own >= 0, sample, rows, step, part))
