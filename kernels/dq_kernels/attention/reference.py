"""Attention in float64 numpy."""

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
