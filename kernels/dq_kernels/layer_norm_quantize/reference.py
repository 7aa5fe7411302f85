"""Layer normalisation and codes in numpy, slow and obvious: what the kernels equal bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dq_kernels.arrays import Array
from dq_kernels.group_norm_silu_quantize.reference import statistics
from dq_kernels.quantize.reference import Quantizer, quantize

F = np.float32


def layer_norm_quantize(
    x: Array,
    step: Array,
    eps: float,
    gamma: Array | None = None,
    beta: Array | None = None,
    outputs: Sequence[Quantizer] = (),
) -> tuple[Array, list[Array], bool]:
    """Y = layer_norm(x) over the channels of each row, and the codes of y for each output.

    Args:
        x: float32 [batch, rows, channels].
        step: int32 [batch].
        eps: added to the variance, in float64.
        gamma: float32 [channels], None: ones.
        beta: float32 [channels], None: zeros.
        outputs: quantizers of any channels of y, up to 3.

    Returns:
        y float32, uint8 codes of each output, and whether x holds a NaN or an infinity, a row's values are further
        apart than float32 reaches, or a product y * m is NaN: then y and codes are unspecified.
    """
    batch, rows, channels = x.shape
    scale = np.ones(channels, F) if gamma is None else gamma
    shift = np.zeros(channels, F) if beta is None else beta
    y = np.empty(x.shape, F)
    nan_seen = False
    with np.errstate(all="ignore"):
        for b in range(batch):
            for row in range(rows):
                mean, rstd, fit = statistics(x[b, row], eps)
                a = rstd * scale
                nan_seen |= not fit
                y[b, row] = (x[b, row] - mean) * a + shift
    found = [quantize(y, step, output) for output in outputs]
    return y, [codes for codes, _ in found], nan_seen or any(seen for _, seen in found)
