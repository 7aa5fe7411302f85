"""The integer linear layer on the GPU: int8 codes times int8 or int4 weights. Compiled and interpreted, never run.

Rows of all samples are one matrix; each row looks up its sample's step, so that a batch may hold any steps.
"""

import triton
import triton.language as tl

from dq_kernels.gpu.device.product_blocks import add_block, raw_sums, tile_of, write_tile


@triton.jit
def int_linear_kernel(
    codes,
    weights,
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
    code_pitch,
    weight_pitch,
    row_pitch,
    residual_pitch,
    y_pitch,
    steps,
    q_min,
    WEIGHT_BITS: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Y = epilogue(codes . weights^T); grid (tiles, splits).

    `partial` int32 [splits, total_rows, out_channels] takes the raw sums where it is not None; then the rest is left
    to `finish_split_kernel`. BLOCK_K counts bytes of a weight row: twice as many channels with int4.
    """
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(total_rows, BLOCK_M), tl.cdiv(out_channels, BLOCK_N), GROUP_M)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_inside = tl.minimum(m, total_rows - 1)
    n_inside = tl.minimum(n, out_channels - 1)
    a_rows = codes + m_inside * code_pitch
    w_rows = weights + n_inside * weight_pitch
    blocks = tl.cdiv(weight_pitch, BLOCK_K)
    share = tl.cdiv(blocks, tl.num_programs(1))
    first = tl.program_id(1) * share
    k = tl.arange(0, BLOCK_K)
    sums = tl.zeros([BLOCK_N, BLOCK_M] if WEIGHTS_FIRST else [BLOCK_M, BLOCK_N], tl.int32)
    for i in range(first, tl.minimum(first + share, blocks)):
        sums = add_block(
            sums, a_rows, w_rows, i * BLOCK_K + k, code_pitch, weight_pitch, WEIGHT_BITS, WEIGHTS_FIRST, EVEN
        )
    sums = raw_sums(sums, WEIGHT_BITS, WEIGHTS_FIRST)
    quantizer = (scale, zero_point, step, steps, q_min)
    extra = (previous, bias, biases, row, row_pitch, residual, residual_pitch)
    weight = (weight_scale, weight_sums)
    result = (y, y_pitch, accumulators, total_rows, out_channels)
    write_tile(sums, m, tile_n * BLOCK_N, m_inside // rows, partial, quantizer, weight, extra, result, PARTS)
