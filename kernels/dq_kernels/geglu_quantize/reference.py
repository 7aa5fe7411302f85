"""GEGLU and codes in numpy, slow and obvious: what the kernels equal bit for bit."""

from __future__ import annotations

import numpy as np

from dq_kernels.arrays import Array
from dq_kernels.group_norm_silu_quantize.reference import exp32
from dq_kernels.quantize.reference import Quantizer, quantize

F = np.float32
ERFC_POLYNOMIAL = (
    *(0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807),
    *(-0.18628806, 0.09678418, 0.37409196, 1.00002368),
)


def gelu32(g: Array) -> Array:
    """G * 0.5 * erfc(-g / sqrt 2) in float32."""
    z = np.abs(g) * F(0.70710678)
    t = F(1.0) / (F(1.0) + F(0.5) * z)
    p = np.full_like(t, F(ERFC_POLYNOMIAL[0]))
    for coefficient in ERFC_POLYNOMIAL[1:]:
        p = F(coefficient) + t * p
    h = t * exp32((-(z * z) - F(1.26551223)) + t * p)
    return g * (F(0.5) * np.where(g >= 0, F(2.0) - h, h))


def geglu_quantize(x: Array, step: Array, output: Quantizer | None = None) -> tuple[Array, Array | None, bool]:
    """Y = value * gelu(gate), and its codes.

    Args:
        x: float32 [batch, rows, 2 * channels], values in the first half of the channels, gates in the second.
        step: int32 [batch].
        output: quantizer of y, None: y alone.

    Returns:
        y float32 [batch, rows, channels], uint8 codes or None, and whether a y (or y * m) is NaN: there the code is
        unspecified.
    """
    channels = x.shape[2] // 2
    with np.errstate(all="ignore"):
        y = x[:, :, :channels] * gelu32(x[:, :, channels:])
    nan_seen = bool(np.isnan(y).any())
    if output is None:
        return y, None, nan_seen
    codes, seen = quantize(y, step, output)
    return y, codes, nan_seen or seen
