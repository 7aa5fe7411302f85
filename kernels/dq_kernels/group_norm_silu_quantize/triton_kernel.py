"""Group normalisation, SiLU and codes on the GPU, in three forms that give the same bits.

Compiled and interpreted, never run.

Passes over x: extremes (the exponents of the fixed point), sums (the mean), squares (the variance), then the result:
four reads, of which the last three come from L2 where the tensor fits there (2.6 MB at 64x64x320 in float16).

Form "resident", groups of up to 16,384 values with their padding, or 40,960 of 16 bits that fill their blocks: one
program a (sample, group) keeps its values in registers through the three passes of the statistics, in one or two
blocks of channels (10 are 8 and 2), and reads them once more, from L1 or L2, for the result; one launch. (Kept for
the result too they take every register: SiLU and codes of 64 values a thread spill.) Form "whole", groups that do not
fit: one program a (sample, group) goes over its rows four times; one launch. Form "split", large groups at batch 1 or
2: programs of [rows, channels] tiles fill the GPU and meet in one workspace of integers by atomics; maxima and
integer sums do not depend on the order, so the bits are the same. Five launches: clear, three passes whose next
blocks are copied while one is summed, the codes. Means and deviations of a group come from its sums wherever they are
needed.
"""

import triton
import triton.language as tl

from dq_kernels.gpu.device.blocks import (
    exponent_of,
    fixed_point,
    flag,
    halves,
    is_finite,
    joined,
    power_of_two,
    silu,
    squares,
    write_codes,
    write_tail,
)
from dq_kernels.gpu.device.statistics import mean_of, rstd_of


@triton.jit
def ordered(v):
    """uint32 that orders as float32 does; 0 is below every number."""
    bits = v.to(tl.uint32, bitcast=True)
    return tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def from_ordered(u):
    """Inverse of `ordered`."""
    return tl.where((u >> 31) != 0, u & 0x7FFFFFFF, u ^ 0xFFFFFFFF).to(tl.float32, bitcast=True)


@triton.jit
def clear_kernel(workspace, words, BLOCK: tl.constexpr):
    """Zero a workspace of int64."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(workspace + i, tl.zeros([BLOCK], tl.int64), mask=i < words)


@triton.jit
def parts_of(workspace, total):
    """Pointers into a workspace of int64 [3 * total groups].

    Extremes (uint32 pairs of a group: largest -x, largest x), sums, sums of squares.
    """
    return workspace.to(tl.pointer_type(tl.uint32)), workspace + total, workspace + 2 * total


@triton.jit
def low_and_high(extremes, place, mask):
    """Smallest and largest value of groups."""
    low = -from_ordered(tl.load(extremes + 2 * place, mask=mask, other=0x80000000))
    return low, from_ordered(tl.load(extremes + 2 * place + 1, mask=mask, other=0x80000000))


@triton.jit
def mean_and_peak(workspace, total, place, mask, count):
    """Means and peak distances of groups whose extremes and sums are in the workspace."""
    extremes, sums, _ = parts_of(workspace, total)
    low, high = low_and_high(extremes, place, mask)
    e = exponent_of(tl.maximum(tl.abs(low), tl.abs(high)))
    mean = mean_of(tl.load(sums + place, mask=mask, other=0), e, count)
    return mean, tl.maximum(tl.abs(low - mean), tl.abs(high - mean))


@triton.jit
def block_of(x, row, rows, channel, channel_fits, x_pitch):
    """Values [rows, channels] of one sample, 0 outside, and where they are inside."""
    mask = (row < rows)[:, None] & channel_fits[None, :]
    return tl.load(x + row[:, None] * x_pitch + channel[None, :], mask=mask, other=0.0), mask


@triton.jit
def statistics_kernel(
    x,
    workspace,
    rows,
    channels,
    groups,
    x_pitch,
    PASS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    STEPS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """One pass of form "split" over STEPS blocks of rows; grid (row chunks, channel blocks, samples).

    PASS 1 fills the extremes of the workspace, 2 the sums, 3 the sums of squares; see `parts_of`.
    """
    sample = tl.program_id(2)
    total = tl.num_programs(2) * groups
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    fits = channel < channels
    width = channels // groups
    place = sample * groups + tl.minimum(channel // width, groups - 1)
    extremes_to, sums_to, squares_to = parts_of(workspace, total)
    e = tl.zeros([BLOCK_CHANNELS], tl.int32)
    mean = tl.zeros([BLOCK_CHANNELS], tl.float32)
    if PASS == 2:
        least, most = low_and_high(extremes_to, place, fits)
        e = exponent_of(tl.maximum(tl.abs(least), tl.abs(most)))
    elif PASS == 3:
        mean, peak = mean_and_peak(workspace, total, place, fits, rows * width)
        e = exponent_of(peak)
    x += sample.to(tl.int64) * rows * x_pitch
    sums = tl.zeros([BLOCK_CHANNELS], tl.int64)
    low = tl.full([BLOCK_CHANNELS], float("inf"), tl.float32)
    high = tl.full([BLOCK_CHANNELS], float("-inf"), tl.float32)
    first = tl.program_id(0) * STEPS * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    for i in tl.range(STEPS, num_stages=AHEAD):
        v, mask = block_of(x, first + i * BLOCK_ROWS, rows, channel, fits, x_pitch)
        v = v.to(tl.float32)
        if PASS == 1:
            low = tl.minimum(low, tl.min(tl.where(mask, v, float("inf")), axis=0))
            high = tl.maximum(high, tl.max(tl.where(mask, v, float("-inf")), axis=0))
        elif PASS == 2:
            sums += tl.sum(tl.where(mask, fixed_point(v, e[None, :]), 0), axis=0)
        else:
            sums += tl.sum(tl.where(mask, squares(v, mean[None, :], e[None, :]), 0), axis=0)
    if PASS == 1:
        tl.atomic_max(extremes_to + 2 * place, ordered(-low), mask=fits, sem="relaxed")
        tl.atomic_max(extremes_to + 2 * place + 1, ordered(high), mask=fits, sem="relaxed")
    elif PASS == 2:
        tl.atomic_add(sums_to + place, sums, mask=fits, sem="relaxed")
    else:
        tl.atomic_add(squares_to + place, sums, mask=fits, sem="relaxed")


@triton.jit
def whole_statistics(x, row_0, channel, fits, rows, x_pitch, count, eps, BLOCK_ROWS: tl.constexpr, AHEAD: tl.constexpr):
    """Mean, rstd and peak distance of one group by three loops over its rows."""
    low = tl.full([BLOCK_ROWS], float("inf"), tl.float32)
    high = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    for start in tl.range(0, rows, BLOCK_ROWS, num_stages=AHEAD):
        v, mask = block_of(x, start + row_0, rows, channel, fits, x_pitch)
        low = tl.minimum(low, tl.min(tl.where(mask, v.to(tl.float32), float("inf")), axis=1))
        high = tl.maximum(high, tl.max(tl.where(mask, v.to(tl.float32), float("-inf")), axis=1))
    lowest = tl.min(low, axis=0)
    highest = tl.max(high, axis=0)
    e = exponent_of(tl.maximum(tl.abs(lowest), tl.abs(highest)))
    total = tl.zeros([BLOCK_ROWS], tl.int64)
    for start in tl.range(0, rows, BLOCK_ROWS, num_stages=AHEAD):
        v, mask = block_of(x, start + row_0, rows, channel, fits, x_pitch)
        total += tl.sum(tl.where(mask, fixed_point(v.to(tl.float32), e), 0), axis=1)
    mean = mean_of(tl.sum(total, axis=0), e, count)
    peak = tl.maximum(tl.abs(lowest - mean), tl.abs(highest - mean))
    e2 = exponent_of(peak)
    total = tl.zeros([BLOCK_ROWS], tl.int64)
    for start in tl.range(0, rows, BLOCK_ROWS, num_stages=AHEAD):
        v, mask = block_of(x, start + row_0, rows, channel, fits, x_pitch)
        total += tl.sum(tl.where(mask, squares(v.to(tl.float32), mean, e2), 0), axis=1)
    return mean, rstd_of(tl.sum(total, axis=0), e2, count, eps), peak


@triton.jit
def kept_block(x, first, start, width, rows, x_pitch, ROWS: tl.constexpr, CHANNELS: tl.constexpr, FULL: tl.constexpr):
    """Values [ROWS, CHANNELS] of a group from its channel `start` on, and where they are inside; FULL: everywhere."""
    row, own = tl.arange(0, ROWS), start + tl.arange(0, CHANNELS)
    if FULL:
        kept = tl.load(x + row[:, None] * x_pitch + (first + own)[None, :])
        return kept, tl.full([ROWS, CHANNELS], True, tl.int1)
    else:
        return block_of(x, row, rows, first + own, own < width, x_pitch)


@triton.jit
def extremes_of(v, mask):
    """Smallest and largest value of a block."""
    return tl.min(tl.where(mask, v, float("inf"))), tl.max(tl.where(mask, v, float("-inf")))


@triton.jit
def sum_of(v, e):
    """int64 sum of the fixed-point integers of a block; those of zeros are 0."""
    upper, lower = halves(v, power_of_two(30 - e))
    return joined(tl.sum(upper), tl.sum(lower))


@triton.jit
def square_sum_of(v, mask, mean, e2):
    """int64 sum of the integers of squared distances of a block."""
    t = tl.where(mask, (v - mean) * power_of_two(15 - e2), 0.0)
    upper, lower = halves(t, t)
    return joined(tl.sum(upper), tl.sum(lower))


@triton.jit
def resident_statistics(
    x, first, width, rows, x_pitch, count, eps,
    ROWS: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Mean, rstd and peak distance of one group that lies in registers, as one or two blocks of channels."""
    kept, mask = kept_block(x, first, 0, width, rows, x_pitch, ROWS, LEFT, FULL)
    low, high = extremes_of(kept.to(tl.float32), mask)
    if RIGHT > 0:
        kept_2, mask_2 = kept_block(x, first, LEFT, width, rows, x_pitch, ROWS, RIGHT, FULL)
        low_2, high_2 = extremes_of(kept_2.to(tl.float32), mask_2)
        low, high = tl.minimum(low, low_2), tl.maximum(high, high_2)
    e = exponent_of(tl.maximum(tl.abs(low), tl.abs(high)))
    total = sum_of(kept.to(tl.float32), e)
    if RIGHT > 0:
        total += sum_of(kept_2.to(tl.float32), e)
    mean = mean_of(total, e, count)
    peak = tl.maximum(tl.abs(low - mean), tl.abs(high - mean))
    e2 = exponent_of(peak)
    total = square_sum_of(kept.to(tl.float32), mask, mean, e2)
    if RIGHT > 0:
        total += square_sum_of(kept_2.to(tl.float32), mask_2, mean, e2)
    return mean, rstd_of(total, e2, count, eps), peak


@triton.jit
def statistics_here(
    x, workspace, rows, width, channel, own, groups, x_pitch, eps,
    WHOLE_GROUPS: tl.constexpr, RESIDENT: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, FULL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Mean, rstd and peak distance [BLOCK_CHANNELS] of each channel's group: of this program, or from the workspace."""
    count = rows * width
    if RESIDENT > 0:
        first = tl.program_id(0) * width
        found = resident_statistics(x, first, width, rows, x_pitch, count, eps, RESIDENT, LEFT, RIGHT, FULL)
    elif WHOLE_GROUPS:
        row_0 = tl.arange(0, BLOCK_ROWS)
        found = whole_statistics(x, row_0, channel, own, rows, x_pitch, count, eps, BLOCK_ROWS, AHEAD)
    else:
        total = tl.num_programs(2) * groups
        place = tl.program_id(2) * groups + tl.minimum(channel // width, groups - 1)
        means, peaks = mean_and_peak(workspace, total, place, own, count)
        _, _, square_sums = parts_of(workspace, total)
        square_sum = tl.load(square_sums + place, mask=own, other=0)
        found = means, rstd_of(square_sum, exponent_of(peaks), count, eps), peaks
    nothing = tl.zeros([BLOCK_CHANNELS], tl.float32)
    return nothing + found[0], nothing + found[1], nothing + found[2]


@triton.jit
def write_rows(
    v, mask, row, row_fits, channel, own, stored, affine, sample, rows, y, y_pitch, step, nan_seen, parts,
    SILU: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Results and codes of a block of values; `affine` holds mean, factor, shift and fitness of each channel."""
    part_0, part_1, part_2 = parts
    mean, a, shift, fit = affine
    bad = (~(is_finite(v) & fit[None, :])) & mask
    z = (v - mean[None, :]) * a[None, :] + shift[None, :]
    if SILU:
        z = silu(z)
    if y is not None:
        place_y = sample.to(tl.int64) * rows * y_pitch + row[:, None] * y_pitch + channel[None, :]
        tl.store(y + place_y, z.to(y.dtype.element_ty), mask=mask)
    bad |= write_codes(z, row, row_fits, channel, stored, sample, rows, step, part_0)
    bad |= write_codes(z, row, row_fits, channel, stored, sample, rows, step, part_1)
    bad |= write_codes(z, row, row_fits, channel, stored, sample, rows, step, part_2)
    flag(nan_seen, bad)
    if TAIL > 0:  # noqa: SIM102  known when it is compiled, unlike the next
        if tl.program_id(0) == 0:
            write_tail(row, row_fits, sample, rows, part_0, TAIL)
            write_tail(row, row_fits, sample, rows, part_1, TAIL)
            write_tail(row, row_fits, sample, rows, part_2, TAIL)


@triton.jit
def group_norm_silu_quantize_kernel(
    x,
    gamma,
    beta,
    y,
    step,
    nan_seen,
    workspace,
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
    groups,
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
    SILU: tl.constexpr,
    WHOLE_GROUPS: tl.constexpr,
    RESIDENT: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    AHEAD: tl.constexpr,
    TAIL: tl.constexpr,
):
    """Y = act(group_norm(x)) and its codes.

    Forms "whole" and "resident": grid (groups, samples), the workspace is None. Form "split": the workspace is filled
    by `statistics_kernel`, grid (row blocks, channel blocks, samples).
    y, codes_1 and codes_2 may be None.
    """
    part_0 = (codes_0, pre_0, inverse_0, zero_0, steps_0, first_0, channels_0, pitch_0, q_min_0, q_max_0)
    part_1 = (codes_1, pre_1, inverse_1, zero_1, steps_1, first_1, channels_1, pitch_1, q_min_1, q_max_1)
    part_2 = (codes_2, pre_2, inverse_2, zero_2, steps_2, first_2, channels_2, pitch_2, q_min_2, q_max_2)
    width = channels // groups
    row_0 = tl.arange(0, BLOCK_ROWS)
    if WHOLE_GROUPS:
        sample = tl.program_id(1)
        channel = tl.program_id(0) * width + tl.arange(0, BLOCK_CHANNELS)
        own = tl.arange(0, BLOCK_CHANNELS) < width
        stored = own
        start = 0
        stop = rows
    else:
        sample = tl.program_id(2)
        channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
        own = channel < channels
        stored = channel >= 0
        start = tl.program_id(0) * BLOCK_ROWS
        stop = start + 1
    eps = eps_bits.to(tl.int64).to(tl.float64, bitcast=True)
    x += sample.to(tl.int64) * rows * x_pitch
    mean, rstd, peak = statistics_here(
        x, workspace, rows, width, channel, own, groups, x_pitch, eps, WHOLE_GROUPS, RESIDENT, LEFT, RIGHT, FULL,
        BLOCK_ROWS, BLOCK_CHANNELS, AHEAD,
    )  # fmt: skip
    a = rstd * tl.load(gamma + channel, mask=own, other=0.0)
    shift = tl.load(beta + channel, mask=own, other=0.0)
    affine = (mean, a, shift, is_finite(a) & is_finite(peak) & is_finite(mean))
    parts = (part_0, part_1, part_2)
    for first_row in range(start, stop, BLOCK_ROWS):
        row = first_row + row_0
        v, mask = block_of(x, row, rows, channel, own, x_pitch)
        write_rows(
            v.to(tl.float32), mask, row, row < rows, channel, own, stored, affine, sample, rows, y, y_pitch, step,
            nan_seen, parts, SILU, TAIL,
        )  # fmt: skip
