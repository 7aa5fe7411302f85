"""Inputs that reach what real ones may never reach: range ends, ties, every channel and every step.

Real activations may leave them untouched, and a wrong zero point or weight there would stay unseen.
"""

from __future__ import annotations

import numpy as np

from dq_deploy.numerics import reciprocal, table_at
from dq_deploy.numerics.arrays import F32, I64
from dq_deploy.record import Layer, Part


def extreme_inputs(layer: Layer, part: Part, shape: tuple[int, ...], buckets: I64, seed: int) -> F32:
    """Inputs whose codes cover the whole range at each step: inside, on ties, at and beyond both ends.

    Half of the values fall on whole and half codes, the rest anywhere from two codes below to two above the range;
    one in a hundred is huge. The last sample is made so that one output channel gets the largest sum it can.

    Args:
        layer: whose input it is.
        part: which slice.
        shape: of one sample.
        buckets: [B] step bucket of each sample.
        seed: of the random values.

    Returns:
        [B, *shape] float32.
    """
    generator = np.random.default_rng([seed, len(buckets), *shape])
    tail = (-1,) + (1,) * len(shape)
    z = table_at(part.zero_point, buckets).reshape(tail).astype(np.float64)
    low, high = layer.q_min - z - 2, layer.q_max - z + 2
    wide = low + (high - low) * generator.random((len(buckets), *shape))
    halves = np.rint(wide * 2) / 2
    target = np.where(generator.random(wide.shape) < 0.5, halves, wide)
    target = np.where(generator.random(wide.shape) < 0.01, np.sign(wide) * 1e30, target)
    channels = [1] * (len(shape) + 1)
    axis = len(shape) - 2 if layer.kind == "conv2d" else len(shape)  # entries of a sample may stand in front
    channels[axis] = -1
    q = part.q_weight(int(part.group_of_step[0])).astype(np.int64)
    if layer.groups == 1:
        row = q[int(np.abs(q).reshape(len(q), -1).sum(axis=1).argmax())].reshape(q.shape[1], -1).sum(axis=1)
        target[-1:] = np.where(row.reshape(channels) > 0, high[-1:], low[-1:])
    multiplier = (reciprocal(table_at(part.scale, buckets))[:, None] * part.pre[None, :]).astype(np.float64)
    spread = [len(buckets)] + [1] * len(shape)
    spread[axis] = len(part.pre)
    with np.errstate(over="ignore"):
        x = target / multiplier.reshape(spread)
    return np.clip(x, -1e37, 1e37).astype(np.float32)
