"""The integer convolution on the GPU, channels last, as an implicit product. Compiled and interpreted, never run.

A pixel of the window outside the image reads its codes from a row of `pads` instead: [steps, code_pitch] bytes that
hold the zero code of each step. So no load needs a mask on pixels and padding is exact for every sample.
"""

import triton
import triton.language as tl

from dq_kernels.gpu.device.blocks import bucket_of
from dq_kernels.gpu.device.product_blocks import add_block, raw_sums, tile_of, write_tile


@triton.jit
def window_sums(
    codes, pad_rows, w_rows, image, top, left, height, width, dilation_h, dilation_w, code_pitch, weight_pitch,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, WEIGHT_BITS: tl.constexpr, WEIGHTS_FIRST: tl.constexpr,
    EVEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Raw sums of this program's part of the loop: over the taps of the window, and within a tap over the channels.

    image, top, left: [m], first row of pixels of each sample, and where each window begins in it; pad_rows: [m], codes
    of what lies outside; w_rows: [n], where the weights of a channel begin.
    """
    per_tap = tl.cdiv(weight_pitch, BLOCK_K)
    blocks = per_tap * (KERNEL_H * KERNEL_W)
    share = tl.cdiv(blocks, tl.num_programs(1))
    first = tl.program_id(1) * share
    tap = first // per_tap
    block = first % per_tap
    k = tl.arange(0, BLOCK_K)
    sums = tl.zeros([BLOCK_N, BLOCK_M] if WEIGHTS_FIRST else [BLOCK_M, BLOCK_N], tl.int32)
    for _ in range(first, tl.minimum(first + share, blocks)):
        down = top + (tap // KERNEL_W) * dilation_h
        across = left + (tap % KERNEL_W) * dilation_w
        inside = (down >= 0) & (down < height) & (across >= 0) & (across < width)
        a_rows = tl.where(inside, codes + ((image + down) * width + across) * code_pitch, pad_rows)
        w_tap = w_rows + tap * weight_pitch
        sums = add_block(
            sums, a_rows, w_tap, block * BLOCK_K + k, code_pitch, weight_pitch, WEIGHT_BITS, WEIGHTS_FIRST, EVEN
        )
        # counted, not divided: a division of unknowns is 25 instructions
        block += 1
        tap += (block == per_tap).to(tl.int32)
        block = tl.where(block == per_tap, 0, block)
    return raw_sums(sums, WEIGHT_BITS, WEIGHTS_FIRST)


@triton.jit
def int_conv2d_kernel(
    codes,
    pads,
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
    height,
    width,
    out_width,
    stride_h,
    stride_w,
    pad_top,
    pad_left,
    dilation_h,
    dilation_w,
    code_pitch,
    weight_pitch,
    row_pitch,
    residual_pitch,
    y_pitch,
    steps,
    q_min,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    WEIGHT_BITS: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Y = epilogue(windows(codes) . weights^T); grid (tiles, splits); see `int_linear_kernel`.

    A row is a pixel of the result, `rows` of them a sample.
    """
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(total_rows, BLOCK_M), tl.cdiv(out_channels, BLOCK_N), GROUP_M)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_inside = tl.minimum(m, total_rows - 1)
    sample = m_inside // rows
    pixel = m_inside % rows
    top = (pixel // out_width) * stride_h - pad_top
    left = (pixel % out_width) * stride_w - pad_left
    pad_rows = pads + bucket_of(step, sample, steps) * code_pitch
    w_rows = weights + tl.minimum(n, out_channels - 1) * (KERNEL_H * KERNEL_W * weight_pitch)
    sums = window_sums(
        codes, pad_rows, w_rows, sample * height, top, left, height, width, dilation_h, dilation_w, code_pitch,
        weight_pitch, KERNEL_H, KERNEL_W, WEIGHT_BITS, WEIGHTS_FIRST, EVEN, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    quantizer = (scale, zero_point, step, steps, q_min)
    extra = (previous, bias, biases, row, row_pitch, residual, residual_pitch)
    weight = (weight_scale, weight_sums)
    result = (y, y_pitch, accumulators, total_rows, out_channels)
    write_tile(sums, m, tile_n * BLOCK_N, sample, partial, quantizer, weight, extra, result, PARTS)
