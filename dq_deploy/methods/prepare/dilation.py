"""Weight dilation (DilateQuant, arXiv 2409.14307): equivalent scaling that leaves the weight range as it was.

``Y = (X / d)(d W)`` with one factor per input channel, from the weights alone. An input channel that attains
an output channel's range end anywhere is saturated and keeps d = 1; any other grows until its first weight
meets the end of its output channel's range.
"""

from __future__ import annotations

import numpy as np

from dq_deploy.errors import OptionError
from dq_deploy.numerics.arrays import F32, F64

LARGEST = 2.0**20
"""Factors stop here: a channel of almost nothing but zeros needs no more."""


def dilation_of(weight: F32, *, bound: str = "asymmetric", groups: int = 1) -> F64:
    """Dilation factor of each input channel.

    ``d_k = min over n and kernel positions of max_n / w (w > 0) and min_n / w (w < 0)``, where [min_n, max_n]
    is the range of output channel n; with the symmetric bound max|w_n| / |w|.

    Args:
        weight: [C_out, C_in / groups, ...] float32.
        bound: `asymmetric` or `symmetric`.
        groups: channel groups.

    Returns:
        [C_in] float64, 1 <= d <= 2^20; exactly 1 for a saturated channel and one without non-zero weights.

    Raises:
        OptionError: unknown bound.
    """
    if bound not in ("asymmetric", "symmetric"):
        raise OptionError(f"dilation bound is {bound!r}, expected asymmetric or symmetric")
    pieces = [_of_group(rows, bound) for rows in np.split(weight.astype(np.float64), groups)]
    return np.concatenate(pieces)


def _of_group(weight: F64, bound: str) -> F64:
    rows = weight.reshape(weight.shape[0], weight.shape[1], -1)
    if bound == "symmetric":
        top = np.abs(rows).max(axis=(1, 2))[:, None, None]
        bottom = -top
    else:
        top, bottom = (end(rows, axis=(1, 2))[:, None, None] for end in (np.max, np.min))
    end = np.where(rows > 0, top, bottom)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.where(rows != 0, end / rows, np.inf)
    d = ratio.min(axis=(0, 2))
    d = np.where(np.isfinite(d), d, 1.0)
    return np.clip(d, 1.0, LARGEST)


def common_dilation(factors: list[F64]) -> F64:
    """The least factor over several consumers of one tensor: legal for all of them."""
    least: F64 = np.minimum.reduce(factors)
    return least


def scale_input_channels(weight: F32, factor: F64, groups: int = 1) -> F32:
    """Each weight times the factor of its input channel, float32."""
    tail = (1,) * (weight.ndim - 2)
    per_group = factor.reshape(groups, -1)
    spread = np.repeat(per_group, weight.shape[0] // groups, axis=0).reshape(weight.shape[:2] + tail)
    return (weight.astype(np.float64) * spread).astype(np.float32)
