"""Attention in float64 numpy, and its integers in int64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def attention(q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], *, scale: float | None = None) -> NDArray[np.float64]:
    """softmax(scale q k^T) v, float64 [batch, rows, heads, head_dim].

    Args:
        q: [batch, rows, heads, head_dim].
        k: [batch, kv_rows, heads, head_dim].
        v: the same shape as k.
        scale: None is 1 / sqrt(head_dim).
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = np.einsum("bqhd,bkhd->bhqk", q.astype(np.float64), k.astype(np.float64)) * scale
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    y: NDArray[np.float64] = np.einsum("bhqk,bkhd->bqhd", weights, v.astype(np.float64))
    return y


def centred_codes(x: NDArray[Any], inverse: NDArray[np.float32], low: Any, high: Any) -> NDArray[np.int64]:
    """clamp(rne(x * inverse), low, high), x * inverse in float32; all broadcast."""
    product = (x.astype(np.float32) * inverse).astype(np.float32)
    return np.clip(np.rint(product), low, high).astype(np.int64)


def score_accumulators(cq: NDArray[np.int64], ck: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum cq ck, int64 [batch, heads, rows, kv_rows], of codes [batch, rows, heads, head_dim]."""
    sums: NDArray[np.int64] = np.einsum("bqhd,bkhd->bhqk", cq, ck)
    return sums


def value_accumulators(cp: NDArray[Any], cv: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum cp cv, int64 [batch, heads, rows, head_dim], of cp [batch, heads, rows, kv_rows]."""
    sums: NDArray[np.int64] = np.einsum("bhqk,bkhd->bhqd", cp.astype(np.int64), cv)
    return sums


def weight_positions(
    scores: NDArray[Any], factor: NDArray[np.float32], inverse: Any, *, normed: bool
) -> NDArray[np.float64]:
    """What a code of the softmax is the rounding of, in float64: its probabilities or their numerators, times inverse.

    Args:
        scores: int [batch, heads, rows, kv_rows].
        factor: float32, broadcasts.
        inverse: 1 / s_p, likewise.
        normed: whether probabilities are coded.
    """
    below = scores.astype(np.int64) - scores.max(axis=-1, keepdims=True).astype(np.int64)
    e = np.exp(below * factor.astype(np.float64))
    total = e.sum(axis=-1, keepdims=True) if normed else 1.0
    positions: NDArray[np.float64] = e / total * np.float64(inverse)
    return positions
