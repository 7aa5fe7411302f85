"""The integer convolution in plain numpy, channels last."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_kernels.arrays import Floats, Ints
from dq_kernels.int_linear.reference import bias_of, centred_weights, epilogue, product, scale_of, zero_codes


def int_conv2d(
    codes: NDArray[Any],
    weights: NDArray[np.int8],
    *,
    scale: Floats,
    zero_point: Ints,
    q_min: int,
    q_max: int,
    step: Ints,
    weight_scale: Floats,
    bias: Floats | None = None,
    row: Floats | None = None,
    residual: Floats | None = None,
    previous: Floats | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    out_size: tuple[int, int] | None = None,
    weight_zero: Ints | None = None,
    zero_code_offset: int = 0,
) -> tuple[Floats, Ints]:
    """Result y and the canonical accumulators, both [batch, out_height, out_width, out_channels].

    Args:
        codes: stored codes [batch, height, width, channels]: c + zero_code, zero_code = z - q_min + zero_code_offset.
        weights: int8 [out_channels, kernel_h, kernel_w, channels]; w_q, less weight_zero where that is given.
        scale: float32 [steps]; 1 step is a static quantizer.
        zero_point: int32 [steps].
        q_min: smallest code.
        q_max: largest code; unused here, part of every quantizer.
        step: int32 [batch], the step bucket of each sample.
        weight_scale: float32 [out_channels].
        bias: float32 [out_channels], or [steps, out_channels]: a row a step.
        row: float32 [batch, out_channels], added to every pixel of a sample.
        residual: float32 [batch, out_height, out_width, out_channels].
        previous: of the same shape, the sum of the parts before this one.
        stride: down, across.
        padding: rows above, columns to the left; c = 0 there, and wherever else the window leaves the image.
        dilation: down, across.
        out_size: out_height, out_width; None takes the padding for that of the bottom and the right, too.
        weight_zero: int32 [out_channels].
        zero_code_offset: 0 for uint8 codes (CPU), -128 for int8 codes (GPU).
    """
    batch, height, width, channels = codes.shape
    out_channels, kernel_h, kernel_w, _ = weights.shape
    out_h, out_w = out_size or (
        (height + 2 * padding[0] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1,
        (width + 2 * padding[1] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1,
    )
    zero_code = zero_codes(zero_point, q_min, step, zero_code_offset)
    centred = codes.astype(np.int64) - zero_code[:, None, None, None]
    reach_h = (out_h - 1) * stride[0] + dilation[0] * (kernel_h - 1) + 1
    reach_w = (out_w - 1) * stride[1] + dilation[1] * (kernel_w - 1) + 1
    padded = np.zeros(
        (batch, max(reach_h, height + padding[0]), max(reach_w, width + padding[1]), channels), centred.dtype
    )
    padded[:, padding[0] : padding[0] + height, padding[1] : padding[1] + width] = centred
    windows = []
    for i in range(kernel_h):
        for j in range(kernel_w):
            top, left = i * dilation[0], j * dilation[1]
            rows = slice(top, top + (out_h - 1) * stride[0] + 1, stride[0])
            columns = slice(left, left + (out_w - 1) * stride[1] + 1, stride[1])
            windows.append(padded[:, rows, columns])
    q = centred_weights(weights, weight_zero).reshape(out_channels, -1)
    accumulators = product(np.concatenate(windows, axis=-1), q)
    y = epilogue(accumulators, scale_of(scale, step), weight_scale, bias_of(bias, step), row, residual, previous)
    return y, accumulators
