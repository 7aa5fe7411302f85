"""Quantizers of an attention's operands."""

from __future__ import annotations

import numpy as np
from dq_kernels.attention import Table


def tables_for(inputs, *, steps=1, symmetric=True, q_max=127, seed=0):
    """Tables of q, k and v that reach over most values, and of the softmax."""
    rng = np.random.default_rng(seed)
    found = {}
    for role in "qkv":
        low, high = (-q_max - 1, q_max) if symmetric else (0, 2 * q_max + 1)
        reach = np.abs(inputs[role]).max() * rng.uniform(0.6, 1.1, steps)
        scale = (reach / q_max).astype(np.float32)
        zero = np.zeros(steps, np.int32) if symmetric else rng.integers(0, high + 1, steps).astype(np.int32)
        found[role] = Table(q_min=low, q_max=high, scale=scale, inverse=np.float32(1) / scale, zero_point=zero)
    share = np.full(1, 1 / (2 * q_max + 1), np.float32)
    found["p"] = Table(
        q_min=0, q_max=2 * q_max + 1, scale=share, inverse=np.float32(1) / share, zero_point=np.zeros(1, np.int32)
    )
    return found
