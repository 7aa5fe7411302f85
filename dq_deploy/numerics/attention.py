"""Attention's two products on codes, in numpy: what kernels that run them must compute.

For one sample at step t, centred codes c and scales s:

    A = cq ck^T                       int64, the accumulators of the first product
    e = exp((A - max A) m), m = (s_q s_k) scale in float32;  P = e / sum e
    of probabilities:  cp = clamp(rne(P / s_p), 0, q_max);  y = (cp cv) * (s_p s_v)
    of numerators:     cp = clamp(rne(e / s_e), 0, q_max);  y = (cp cv) * (s_v / sum cp)

exp is the one operation here whose last bit is an engine's own, so a code of the softmax is right where it is the
rounding of a value within `SOFTMAX_UNITS` of float32's precision of the exact one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dq_deploy.numerics.arrays import F32, F64, I32, I64, Array

SOFTMAX_UNITS = 16.0
"""Units of 2^-24 by which an engine's numerator may be off besides those of its argument."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OperandTable:
    """The quantizer of one operand at one step.

    Attributes:
        q_min: lowest code.
        q_max: highest code.
        scale: float32.
        zero_point: of the codes.
    """

    q_min: int
    q_max: int
    scale: np.float32
    zero_point: int

    @property
    def inverse(self) -> np.float32:
        """The float32 reciprocal of the scale."""
        return np.float32(np.float32(1) / self.scale)

    def codes(self, x: F32) -> I64:
        """Centred codes of a tensor: clamp(rne(x / s), q_min - z, q_max - z)."""
        product = (x.astype(np.float32) * self.inverse).astype(np.float32)
        return np.clip(np.rint(product), self.q_min - self.zero_point, self.q_max - self.zero_point).astype(np.int64)


def score_factor(q: OperandTable, k: OperandTable, scale: float) -> np.float32:
    """M = (s_q s_k) scale, each product rounded to float32."""
    return np.float32(np.float32(q.scale * k.scale) * np.float32(scale))


def accumulators(left: Array, right: Array) -> I64:
    """Left @ right in integers, by float64 where that is exact."""
    largest = float(np.abs(left).max(initial=0)) * float(np.abs(right).max(initial=0)) * left.shape[-1]
    kind: Any = np.float64 if largest < 2.0**53 else np.int64
    sums: I64 = np.matmul(left.astype(kind), right.astype(kind)).astype(np.int64)
    return sums


@dataclass(frozen=True, kw_only=True, eq=False)
class SoftmaxCodes:
    """What codes of a softmax are to be.

    Attributes:
        position: float64 [rows, kv_rows], e / s_e or P / s_p, clamped to the codes' range.
        allowed: by how much an engine's position may be off.
    """

    position: F64
    allowed: F64

    def wrong(self, codes: Array) -> Array:
        """Where a code is no rounding of an allowed position."""
        wrong: Array = ~(np.abs(codes - self.position) <= 0.5 + self.allowed)  # NaN is wrong too
        return wrong


def softmax_codes(scores: Array, factor: np.float32, table: OperandTable, *, normed: bool) -> SoftmaxCodes:
    """Positions of the codes of exp((A - max A) m), or of their shares of the row's sum.

    Args:
        scores: int [rows, kv_rows], A.
        factor: m.
        table: of the softmax; its codes begin at 0.
        normed: whether probabilities are coded.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # a factor that is no number gives positions that are none
        below = (scores.max(-1, keepdims=True).astype(np.int64) - scores) * np.float64(factor)
        e = np.exp(-below)
        position = e * np.float64(table.inverse)
        units = SOFTMAX_UNITS + 4 * below  # the argument of exp is rounded a few times
        if normed:
            position = position / e.sum(-1, keepdims=True)
            units = units + (e * units).sum(-1, keepdims=True) / e.sum(-1, keepdims=True) + np.sqrt(e.shape[-1])
        allowed = position * units * 2.0**-24
    return SoftmaxCodes(position=np.clip(position, 0, table.q_max), allowed=allowed)


def attention_output(sums: Array, codes: Array, v: OperandTable, softmax: OperandTable, *, normed: bool) -> F32:
    """Y of the second product's accumulators.

    Args:
        sums: int [rows, head_dim], cp cv.
        codes: int [rows, kv_rows], cp.
        v: table of the values.
        softmax: of the softmax.
        normed: whether probabilities are coded.
    """
    if normed:
        by: Any = np.float32(softmax.scale * v.scale)
    else:
        total: I32 = codes.astype(np.int64).sum(-1, keepdims=True).astype(np.int32)
        by = (v.scale / total.astype(np.float32)).astype(np.float32)
    y: F32 = (sums.astype(np.float32) * by).astype(np.float32)
    return y
