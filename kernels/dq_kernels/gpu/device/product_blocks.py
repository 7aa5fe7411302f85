"""Device functions of the integer products: order of the tiles, int4 in registers, the epilogue.

Weights are int8 [out_channels, taps, pitch] with the input channels contiguous, or int4 in the order of
`dq_kernels.gpu.launch.weights`: byte j of a row holds channel j in its low nibble and channel
j + pitch in its high one.
"""

import triton
import triton.language as tl

from dq_kernels.gpu.device.blocks import bucket_of

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def tile_of(index, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Tile (m, n) of a program: GROUP_M tiles of rows before the next tile of columns, for weights to stay in L2."""
    in_group = GROUP_M * tiles_n
    first = (index // in_group) * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    inside = index % in_group
    return first + inside % height, inside // height


@triton.jit
def low_nibbles(packed):
    """16 * the signed low nibble of each byte; the factor is taken off the whole sum."""
    if INTERPRETED:
        return packed << 4
    else:
        asm: tl.constexpr = "{.reg .b32 t; shl.b32 t, $1, 4; and.b32 $0, t, 0xF0F0F0F0;}"
        return tl.inline_asm_elementwise(asm, "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4)


@triton.jit
def high_nibbles(packed):
    """16 * the signed high nibble of each byte."""
    if INTERPRETED:
        return packed & -16
    else:
        asm: tl.constexpr = "and.b32 $0, $1, 0xF0F0F0F0;"
        return tl.inline_asm_elementwise(asm, "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4)


@triton.jit
def multiply(a, w, sums, WEIGHTS_FIRST: tl.constexpr):
    """Add codes a [m, k] times weights w [n, k] to sums, [n, m] where the weights are the first operand."""
    if WEIGHTS_FIRST:
        return tl.dot(w, tl.trans(a), sums, out_dtype=tl.int32)
    else:
        return tl.dot(a, tl.trans(w), sums, out_dtype=tl.int32)


@triton.jit
def add_block(
    sums,
    a_rows,
    w_rows,
    k,
    code_pitch,
    weight_pitch,
    WEIGHT_BITS: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Add the products of bytes k of the weight rows and of the codes that belong to them.

    a_rows: pointers [m] to where the codes of a pixel begin; w_rows: pointers [n] to where the weights do. Codes beyond
    the pitch are read as 0; weights beyond a channel are stored as 0. EVEN: no byte is beyond a pitch.
    """
    if EVEN:
        w = tl.load(w_rows[:, None] + k[None, :])
        a = tl.load(a_rows[:, None] + k[None, :])
    else:
        w = tl.load(w_rows[:, None] + k[None, :], mask=(k < weight_pitch)[None, :], other=0)
        a = tl.load(a_rows[:, None] + k[None, :], mask=(k < tl.minimum(code_pitch, weight_pitch))[None, :], other=0)
    if WEIGHT_BITS == 8:
        return multiply(a, w, sums, WEIGHTS_FIRST)
    else:
        k_high = k + weight_pitch
        if EVEN:
            a_high = tl.load(a_rows[:, None] + k_high[None, :])
        else:
            inside = (k < weight_pitch) & (k_high < code_pitch)
            a_high = tl.load(a_rows[:, None] + k_high[None, :], mask=inside[None, :], other=0)
        sums = multiply(a, low_nibbles(w), sums, WEIGHTS_FIRST)
        return multiply(a_high, high_nibbles(w), sums, WEIGHTS_FIRST)


@triton.jit
def raw_sums(sums, WEIGHT_BITS: tl.constexpr, WEIGHTS_FIRST: tl.constexpr):
    """Sums of u * w as [m, n]."""
    if WEIGHT_BITS == 4:
        sums = sums >> 4
    if WEIGHTS_FIRST:
        return tl.trans(sums)
    else:
        return sums


@triton.jit
def finish(sums, m, n, m_fits, n_fits, sample, quantizer, weight, extra, y, y_pitch, accumulators, out_channels):
    """Canonical accumulators and the epilogue of a tile [m, n]; every float32 step is rounded on its own.

    quantizer: (scale, zero_point, step, steps, q_min); weight: (weight_scale, weight_sums); extra: (previous, bias,
    biases, row, row_pitch, residual, residual_pitch), each may be None: `biases` are a row a step, [steps,
    out_channels], in place of `bias`. `previous` has the pitch of y.
    """
    scale, zero_point, step, steps, q_min = quantizer
    weight_scale, weight_sums = weight
    previous, bias, biases, row, row_pitch, residual, residual_pitch = extra
    fits = m_fits[:, None] & n_fits[None, :]
    t = bucket_of(step, sample, steps)
    zero_code = tl.load(zero_point + t) - q_min - 128
    total = sums - zero_code[:, None] * tl.load(weight_sums + n, mask=n_fits, other=0)[None, :]
    if accumulators is not None:
        tl.store(accumulators + m[:, None] * out_channels + n[None, :], total, mask=fits)
    if y is not None:
        both = tl.load(scale + t)[:, None] * tl.load(weight_scale + n, mask=n_fits, other=0.0)[None, :]
        v = total.to(tl.float32) * both
        place = m[:, None] * y_pitch + n[None, :]
        if previous is not None:
            v = tl.load(previous + place, mask=fits, other=0.0).to(tl.float32) + v
        if bias is not None:
            v = v + tl.load(bias + n, mask=n_fits, other=0.0)[None, :]
        if biases is not None:
            v = v + tl.load(biases + t[:, None] * out_channels + n[None, :], mask=fits, other=0.0)
        if row is not None:
            v = v + tl.load(row + sample[:, None] * row_pitch + n[None, :], mask=fits, other=0.0).to(tl.float32)
        if residual is not None:
            place_r = m[:, None] * residual_pitch + n[None, :]
            v = tl.load(residual + place_r, mask=fits, other=0.0).to(tl.float32) + v
        tl.store(y + place, v.to(y.dtype.element_ty), mask=fits)


@triton.jit
def halves_of(sums):
    """The left and the right half of the columns of a tile, each thread's own registers taken apart."""
    pairs = tl.reshape(sums, (sums.shape[0], 2, sums.shape[1] // 2))
    return tl.split(tl.permute(pairs, (0, 2, 1)))


@triton.jit
def store_partial(partial, sums, m, n, total_rows, out_channels):
    """Raw sums of one part of the K loop."""
    place = (tl.program_id(1) * total_rows + m[:, None]) * out_channels + n[None, :]
    tl.store(partial + place, sums, mask=(m < total_rows)[:, None] & (n < out_channels)[None, :])


@triton.jit
def write_tile(sums, m, first_n, sample, partial, quantizer, weight, extra, result, PARTS: tl.constexpr):
    """Raw sums to `partial` where it is not None, else the epilogue, of a tile's columns from `first_n` on.

    The epilogue goes over the columns in PARTS, 1, 2 or 4, so that what it loads fits beside the sums in registers.
    result: (y, y_pitch, accumulators, total_rows, out_channels); the rest as of `finish`.
    """
    y, y_pitch, accumulators, total_rows, out_channels = result
    if PARTS > 1:
        left, right = halves_of(sums)
        half: tl.constexpr = sums.shape[1] // 2
        write_tile(left, m, first_n, sample, partial, quantizer, weight, extra, result, PARTS // 2)
        write_tile(right, m, first_n + half, sample, partial, quantizer, weight, extra, result, PARTS // 2)
    else:
        n = first_n + tl.arange(0, sums.shape[1])
        if partial is not None:
            store_partial(partial, sums, m, n, total_rows, out_channels)
        else:
            m_fits, n_fits = m < total_rows, n < out_channels
            finish(sums, m, n, m_fits, n_fits, sample, quantizer, weight, extra, y, y_pitch, accumulators, out_channels)


@triton.jit
def finish_split_kernel(
    partial,
    scale,
    zero_point,
    step,
    weight_scale,
    weight_sums,
    previous,
    bias,
    biases,
    row,
    residual,
    y,
    accumulators,
    total_rows,
    rows,
    out_channels,
    row_pitch,
    residual_pitch,
    y_pitch,
    steps,
    q_min,
    splits,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add the parts [splits, rows, out_channels] of a split product and finish it; grid (row tiles, columns)."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_fits = m < total_rows
    n_fits = n < out_channels
    fits = m_fits[:, None] & n_fits[None, :]
    place = m[:, None] * out_channels + n[None, :]
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for i in range(splits):
        sums += tl.load(partial + i * total_rows * out_channels + place, mask=fits, other=0)
    sample = tl.minimum(m, total_rows - 1) // rows
    quantizer = (scale, zero_point, step, steps, q_min)
    extra = (previous, bias, biases, row, row_pitch, residual, residual_pitch)
    weight = (weight_scale, weight_sums)
    finish(sums, m, n, m_fits, n_fits, sample, quantizer, weight, extra, y, y_pitch, accumulators, out_channels)
