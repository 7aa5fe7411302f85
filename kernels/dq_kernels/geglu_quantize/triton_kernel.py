"""GEGLU and its codes on the GPU: one read of x, one write of y or of codes. Compiled and interpreted, never run."""

import triton
import triton.language as tl

from dq_kernels.gpu.device.blocks import flag, gelu, write_codes


@triton.jit
def geglu_quantize_kernel(
    x,
    y,
    codes,
    pre,
    inverse_scale,
    zero_point,
    step,
    nan_seen,
    rows,
    channels,
    x_pitch,
    y_pitch,
    first,
    part_channels,
    code_pitch,
    steps,
    q_min,
    q_max,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Y = value * gelu(gate) of x = [value, gate]; y and codes may each be None; grid (rows, channels, samples)."""
    sample = tl.program_id(2)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    row_fits = row < rows
    mask = row_fits[:, None] & (channel < channels)[None, :]
    x += sample.to(tl.int64) * rows * x_pitch
    place = x + row[:, None] * x_pitch + channel[None, :]
    value = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(place + channels, mask=mask, other=0.0).to(tl.float32)
    v = value * gelu(gate)
    if y is not None:
        to = y + sample.to(tl.int64) * rows * y_pitch
        tl.store(to + row[:, None] * y_pitch + channel[None, :], v.to(y.dtype.element_ty), mask=mask)
    part = (codes, pre, inverse_scale, zero_point, steps, first, part_channels, code_pitch, q_min, q_max)
    bad = write_codes(v, row, row_fits, channel, channel >= 0, sample, rows, step, part)
    flag(nan_seen, (bad | (v != v)) & mask)
