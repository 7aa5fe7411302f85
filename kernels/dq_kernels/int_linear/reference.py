"""The integer linear layer in plain numpy, and the epilogue it shares with the convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_kernels.arrays import Floats, Ints


def int_linear(
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
    weight_zero: Ints | None = None,
    zero_code_offset: int = 0,
) -> tuple[Floats, Ints]:
    """Result y and the canonical accumulators A = sum of c * w_q, both [batch, rows, out_channels].

    Args:
        codes: stored codes [batch, rows, channels]: c + zero_code, with zero_code = z - q_min + zero_code_offset.
        weights: int8 [out_channels, channels]; w_q, less weight_zero where that is given.
        scale: float32 [steps]; 1 step is a static quantizer.
        zero_point: int32 [steps].
        q_min: smallest code.
        q_max: largest code; unused here, part of every quantizer.
        step: int32 [batch], the step bucket of each sample.
        weight_scale: float32 [out_channels].
        bias: float32 [out_channels], or [steps, out_channels]: a row a step.
        row: float32 [batch, out_channels], added to every row of a sample.
        residual: float32 [batch, rows, out_channels].
        previous: float32 [batch, rows, out_channels], the sum of the parts before this one.
        weight_zero: int32 [out_channels].
        zero_code_offset: 0 for uint8 codes (CPU), -128 for int8 codes (GPU).
    """
    zero_code = zero_codes(zero_point, q_min, step, zero_code_offset)
    centred = codes.astype(np.int64) - zero_code[:, None, None]
    accumulators = product(centred, centred_weights(weights, weight_zero))
    y = epilogue(accumulators, scale_of(scale, step), weight_scale, bias_of(bias, step), row, residual, previous)
    return y, accumulators


def zero_codes(zero_point: Ints, q_min: int, step: Ints, zero_code_offset: int) -> NDArray[np.int64]:
    """Stored code of c = 0 for each sample, int64 [batch]."""
    of_step = zero_point.astype(np.int64) - q_min + zero_code_offset
    return of_step[np.zeros_like(step) if len(of_step) == 1 else step]


def centred_weights(weights: NDArray[np.int8], weight_zero: Ints | None) -> NDArray[Any]:
    """w_q [out_channels, ...]."""
    if weight_zero is None:
        return weights
    wide: NDArray[Any] = weights.astype(np.int64) - weight_zero.reshape((-1,) + (1,) * (weights.ndim - 1))
    return wide


def scale_of(scale: Floats, step: Ints) -> Floats:
    """Activation scale of each sample, float32 [batch]."""
    return scale[np.zeros_like(step) if len(scale) == 1 else step]


def bias_of(bias: Floats | None, step: Ints) -> Floats | None:
    """Bias [out_channels], or of each sample's step [batch, out_channels] where it has a row a step."""
    return bias if bias is None or bias.ndim == 1 else scale_of(bias, step)


def product(centred: NDArray[np.int64], weights: NDArray[Any]) -> Ints:
    """Exact integer product over the last axis; float64 holds every sum below 2^53 without rounding."""
    sums = centred.astype(np.float64) @ weights.astype(np.float64).T
    return sums.astype(np.int64).astype(np.int32)


def epilogue(
    accumulators: Ints,
    scale: Floats,
    weight_scale: Floats,
    bias: Floats | None,
    row: Floats | None,
    residual: Floats | None,
    previous: Floats | None,
) -> Floats:
    """float32 results of [batch, ..., out_channels] accumulators, each product and sum rounded on its own.

    The bias is [out_channels], or [batch, out_channels] as of `bias_of`.
    """
    lead = (len(accumulators),) + (1,) * (accumulators.ndim - 2)
    v = accumulators.astype(np.float32) * (scale.reshape(*lead, 1) * weight_scale)
    if previous is not None:
        v = previous + v
    if bias is not None:
        v = v + (bias if bias.ndim == 1 else bias.reshape(*lead, -1))
    if row is not None:
        v = v + row.reshape(*lead, -1)
    if residual is not None:
        v = residual + v
    return v.astype(np.float32)
