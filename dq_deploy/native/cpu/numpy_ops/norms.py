"""Normalizations over axes that the kernels' norms do not span, or in another float type."""

from __future__ import annotations

import numpy as np

from dq_deploy.native.cpu.numpy_ops.made import Made, Result, Table
from dq_deploy.native.cpu.numpy_ops.reductions import inverse_rms
from dq_deploy.numerics.arrays import Array


def _moments(x: Array, axes: tuple[int, ...], eps: float) -> tuple[Array, Array]:
    values = x.astype(np.float64, copy=False)
    mean = values.mean(axes, keepdims=True)
    return mean, 1 / np.sqrt(values.var(axes, keepdims=True) + eps)


def _affine(x: Array, weight: Array | None, bias: Array | None) -> Array:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(made: Made, x: Array, shape: list[int], weight: Array | None, bias: Array | None, eps: float) -> Result:
    mean, inverse = _moments(x, tuple(range(x.ndim - len(shape), x.ndim)), eps)
    return _affine((x - mean) * inverse, weight, bias), mean, inverse


def _group_norm(
    made: Made,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    batch: int,
    channels: int,
    pixels: int,
    groups: int,
    eps: float,
) -> Result:
    rows = x.reshape(batch, groups, -1)
    mean, inverse = _moments(rows, (2,), eps)
    tail = (-1, *(1,) * (x.ndim - 2))
    gamma, beta = (None if v is None else v.reshape(tail) for v in (weight, bias))
    y = _affine(((rows - mean) * inverse).reshape(x.shape), gamma, beta)
    return y, mean[..., 0], inverse[..., 0]


def _batch_norm(
    made: Made, x: Array, weight: Array | None, bias: Array | None, mean: Array, var: Array, momentum: float, eps: float
) -> Result:
    tail = (-1, *(1,) * (x.ndim - 2))
    gamma, beta = (None if v is None else v.reshape(tail) for v in (weight, bias))
    inverse = 1 / np.sqrt(var.astype(np.float64) + eps)
    y = _affine((x - mean.reshape(tail)) * inverse.reshape(tail), gamma, beta)
    return y, np.zeros(0, np.float32), np.zeros(0, np.float32)


def _rms_norm(made: Made, x: Array, shape: list[int], weight: Array | None, eps: float | None) -> Result:
    rows = x.reshape(*x.shape[: x.ndim - len(shape)], -1)
    least = float(np.finfo(x.dtype).eps) if eps is None else eps
    inverse = inverse_rms(made, rows, least)
    y = (rows * inverse).reshape(x.shape)
    return _affine(y, weight, None), inverse


def _log_softmax(made: Made, x: Array, dim: int, half_to_float: bool = False) -> Array:
    shifted = x.astype(np.float64) - np.max(x, axis=dim, keepdims=True)
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted), axis=dim, keepdims=True)))


OPS: Table = {
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_fused_rms_norm": _rms_norm,
    "_log_softmax": _log_softmax,
}
