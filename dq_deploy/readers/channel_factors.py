"""Power-of-two factors of input channels (DMQ): exact in an integer layer where all steps have the same.

Channel k is rounded at the scale ``s[t] * 2^-j[k]``. In a record that is `pre` times 2^j, weights shifted left by
J - j and weight scales over 2^J, all without rounding. `pre` is one for all steps, so factors that differ by step have
no form there: the layer stays float, or one factor is elected.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dq_deploy.numerics.arrays import I64
from dq_deploy.record import Part

CHOICES = ("float", "vote")
"""What becomes of a layer whose factors differ by step: it stays float, or one factor a channel is elected."""


def differ_by_step(exponents: I64) -> bool:
    """Whether a [T, C] table has more than one row."""
    return bool((exponents != exponents[:1]).any())


def elected(exponents: I64) -> tuple[I64, int]:
    """[C] most frequent exponent of each channel over the steps, and how many of the T * C entries it changes.

    Of equally frequent ones the smallest wins, which clips least.
    """
    counts = np.stack([(exponents == j).sum(axis=0) for j in range(int(exponents.max()) + 1)])
    winner = counts.argmax(axis=0).astype(np.int64)
    return winner, int((exponents != winner).sum())


def shifted(part: Part, exponents: I64) -> Part | None:
    """The part with channel k's scale over 2^j, or None where the shifted weights leave int8; needs 8-bit codes."""
    most = int(exponents.max(initial=0))
    q = part.q_weight(0).astype(np.int32)
    q = np.left_shift(q, (most - exponents).reshape(1, -1, *(1,) * (q.ndim - 2)))
    if int(q.min()) < -128 or int(q.max()) > 127:
        return None
    return replace(
        part,
        pre=np.ldexp(part.pre, exponents).astype(np.float32),
        w_code=q.astype(np.int8)[None],
        w_zero_point=np.zeros_like(part.w_zero_point),
        weight_scale=np.ldexp(part.weight_scale, -most).astype(np.float32),
    )
