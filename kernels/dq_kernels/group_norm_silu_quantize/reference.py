"""Group normalisation, SiLU and codes in numpy, slow and obvious: what the kernels equal bit for bit.

Statistics are sums of integers, so that they do not depend on the order of the values; every float32 step is rounded
on its own. Nothing here is a library's exp or sum of floats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dq_kernels.arrays import Array
from dq_kernels.quantize.reference import Quantizer, quantize

F = np.float32
MIN_EXPONENT = -90
"""Values below 2^-90 count as integers of that scale; it keeps 2^(30 - e) a float32."""
MAX_VALUES = 1 << 22
"""Values of one group: their sum of integers up to 2^30 is exact in float64."""
EXP_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def exp32(v: Array) -> Array:
    """e^v in float32, v clamped to [-87, 88]."""
    v = np.minimum(np.maximum(v, F(-87.0)), F(88.0))
    n = np.rint(v * F(1.44269504))
    r: Array = v - n * F(0.693359375)
    r = r - n * F(-2.12194440e-4)
    p: Array = np.full_like(r, F(EXP_POLYNOMIAL[0]))
    for coefficient in EXP_POLYNOMIAL[1:]:
        p = p * r + F(coefficient)
    e = p * (r * r) + r
    e = e + F(1.0)
    power: Array = np.where(np.isnan(n), F(0.0), n).astype(np.int32)
    result: Array = e * ((power + 127) << 23).view(np.float32)
    return result


def silu32(y: Array) -> Array:
    """Y / (1 + exp32(-y)), float32."""
    return y / (F(1.0) + exp32(-y))


def exponent_of(peak: np.float32) -> int:
    """Exponent e with peak < 2^e as frexp gives it, -90 at least."""
    if peak == 0 or not np.isfinite(peak):
        return MIN_EXPONENT
    return max(math.frexp(float(peak))[1], MIN_EXPONENT)


def statistics(values: Array, eps: float) -> tuple[np.float32, np.float32, bool]:
    """Mean and 1 / sqrt(variance + eps) of one group of float32 values.

    Returns:
        The two, and whether they are fit for use: not where a value is NaN or infinite, or where the distance of two
        values is beyond float32.
    """
    if not np.isfinite(values).all():
        return F(0.0), F(1.0), False
    count = np.float64(values.size)
    low, high = values.min(), values.max()
    e = exponent_of(max(abs(low), abs(high)))
    integers = np.rint(values * F(2.0 ** (30 - e))).astype(np.int64)
    mean = F(np.float64(integers.sum()) * 2.0 ** (e - 30) / count)
    peak = max(abs(low - mean), abs(high - mean))
    if not np.isfinite(peak):
        return F(0.0), F(1.0), False
    e2 = exponent_of(peak)
    t = (values - mean) * F(2.0 ** (15 - e2))
    squares = np.rint(t * t).astype(np.int64)
    variance = np.float64(squares.sum()) * 2.0 ** (2 * (e2 - 15)) / count
    with np.errstate(divide="ignore"):
        return mean, F(1.0 / np.sqrt(variance + np.float64(eps))), True


def group_norm_silu_quantize(
    x: Array,
    step: Array,
    groups: int,
    eps: float,
    silu: bool = True,
    gamma: Array | None = None,
    beta: Array | None = None,
    outputs: Sequence[Quantizer] = (),
) -> tuple[Array, list[Array], bool]:
    """Y = act(group_norm(x)) and the codes of y for each output.

    Args:
        x: float32 [batch, rows, channels]; a group is channels / groups adjacent channels of all rows.
        step: int32 [batch].
        groups: divides channels; a group has at most 2^22 values.
        eps: added to the variance, in float64.
        silu: whether act is SiLU; otherwise y is the normalised value.
        gamma: float32 [channels], None: ones.
        beta: float32 [channels], None: zeros.
        outputs: quantizers of channel slices of y, up to 2.

    Returns:
        y float32, uint8 codes of each output, and whether x holds a NaN or an infinity, a group's values are further
        apart than float32 reaches, or a product y * m is NaN: then y and codes are unspecified.
    """
    batch, _, channels = x.shape
    width = channels // groups
    scale = np.ones(channels, F) if gamma is None else gamma
    shift = np.zeros(channels, F) if beta is None else beta
    y = np.empty(x.shape, F)
    nan_seen = False
    with np.errstate(all="ignore"):
        for b in range(batch):
            for g in range(groups):
                part = slice(g * width, (g + 1) * width)
                mean, rstd, fit = statistics(x[b, :, part], eps)
                a = rstd * scale[part]
                nan_seen |= not fit
                y[b, :, part] = (x[b, :, part] - mean) * a + shift[part]
        if silu:
            y = silu32(y)
    found = [quantize(y, step, output) for output in outputs]
    return y, [codes for codes, _ in found], nan_seen or any(seen for _, seen in found)
