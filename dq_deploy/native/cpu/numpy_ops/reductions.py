"""Sums, means, extremes and orders along axes; sums of floats run in float64 and are rounded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dq_deploy.native.cpu.numpy_ops.made import Made, Result, Table, axes_of
from dq_deploy.numerics.arrays import Array

Dims = int | list[int] | None


def _accumulator(x: Array) -> Any:
    return {"f": np.float64, "c": np.complex128}.get(x.dtype.kind, np.int64)


def _sum(made: Made, x: Array, dim: Dims = None, keepdim: bool = False) -> Array:
    x = x.astype(made.dtype, copy=False) if made.dtype.kind != x.dtype.kind else x
    return np.asarray(np.sum(x, axis=axes_of(dim, x.ndim), keepdims=keepdim, dtype=_accumulator(x)))


def _mean(made: Made, x: Array, dim: Dims = None, keepdim: bool = False) -> Array:
    return np.asarray(np.mean(x, axis=axes_of(dim, x.ndim), keepdims=keepdim, dtype=_accumulator(x)))


def _var(made: Made, x: Array, dim: Dims = None, *, correction: float | None = None, keepdim: bool = False) -> Array:
    less, axes = 1.0 if correction is None else correction, axes_of(dim, x.ndim)
    values = x.astype(np.float64)
    apart = np.square(values - values.mean(axes, keepdims=True)).sum(axes, keepdims=keepdim)
    count = int(np.prod([x.shape[axis] for axis in axes]))
    return np.asarray(apart / np.float64(max(count - less, 0)))


def _var_mean(made: Made, x: Array, dim: Dims = None, correction: float | None = None, keepdim: bool = False) -> Result:
    return _var(made, x, dim, correction=correction, keepdim=keepdim), _mean(made, x, dim, keepdim)


def _std(made: Made, x: Array, dim: Dims = None, correction: float | None = None, keepdim: bool = False) -> Array:
    return np.sqrt(_var(made, x, dim, correction=correction, keepdim=keepdim))


def _along(function: Callable[..., Any]) -> Callable[..., Array]:
    def run(made: Made, x: Array, dim: Dims = None, keepdim: bool = False) -> Array:
        return np.asarray(function(x, axis=axes_of(dim, x.ndim), keepdims=keepdim))

    return run


def _prod(made: Made, x: Array, dim: Dims = None, keepdim: bool = False) -> Array:
    return np.asarray(np.prod(x, axis=axes_of(dim, x.ndim), keepdims=keepdim, dtype=_accumulator(x)))


def _place(function: Callable[..., Any]) -> Callable[..., Array]:
    def run(made: Made, x: Array, dim: int | None = None, keepdim: bool = False) -> Array:
        return np.asarray(function(x, axis=dim, keepdims=keepdim))

    return run


def _extreme(function: Callable[..., Any]) -> Callable[..., Result]:
    """Values and their places."""

    def run(made: Made, x: Array, dim: int, keepdim: bool = False) -> Result:
        if not x.ndim:
            return x.copy(), np.zeros((), np.int64)
        place = function(x, axis=dim, keepdims=True)
        value = np.take_along_axis(x, place, dim)
        return (value, place) if keepdim else (value.squeeze(dim), place.squeeze(dim))

    return run


def _norm(made: Made, x: Array, ord: float = 2, dim: Dims = None, keepdim: bool = False) -> Array:
    axes, size = axes_of(dim, x.ndim), np.abs(x).astype(np.float64)
    if np.isinf(ord):
        return np.asarray((np.max if ord > 0 else np.min)(size, axis=axes, keepdims=keepdim))
    if ord == 0:
        return np.asarray(np.sum(size != 0, axis=axes, keepdims=keepdim))
    return np.asarray(np.sum(size**ord, axis=axes, keepdims=keepdim) ** (1 / ord))


def _logsumexp(made: Made, x: Array, dim: Dims, keepdim: bool = False) -> Array:
    axes = axes_of(dim, x.ndim)
    top = np.max(x, axis=axes, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    found = np.log(np.sum(np.exp(x - top), axis=axes, keepdims=True, dtype=np.float64)) + top
    return np.asarray(found if keepdim else found.squeeze(axes))


def _running(function: Callable[..., Any]) -> Callable[..., Array]:
    def run(made: Made, x: Array, dim: int) -> Array:
        x = x.astype(made.dtype, copy=False)
        return np.asarray(function(x, axis=dim, dtype=_accumulator(x))) if x.ndim else x.copy()

    return run


def _order(x: Array, dim: int, descending: bool) -> Array:
    if not descending:
        return np.argsort(x, axis=dim, kind="stable")
    back = np.flip(np.argsort(np.flip(x, dim), axis=dim, kind="stable"), dim)
    return np.asarray(x.shape[dim] - 1 - back)


def _sort(made: Made, x: Array, dim: int = -1, descending: bool = False, stable: bool | None = None) -> Result:
    if not x.ndim:
        return x.copy(), np.zeros((), np.int64)
    order = _order(x, dim, descending)
    return np.take_along_axis(x, order, dim), order


def _topk(made: Made, x: Array, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Result:
    order = np.take(_order(x, dim, largest), np.arange(k), axis=dim)
    return np.take_along_axis(x, order, dim), order


def inverse_rms(made: Made, x: Array, eps: float) -> Array:
    """1 / sqrt(mean of squares over the last axis + eps), the axis kept: what a RMS norm multiplies by."""
    if x.dtype != np.float32:
        x = x.astype(np.float64)
    squares = np.einsum("...i,...i->...", x, x)[..., None] / x.dtype.type(x.shape[-1])
    return np.asarray(1 / np.sqrt(squares + x.dtype.type(eps)))


OPS: Table = {
    "sum": _sum,
    "mean": _mean,
    "var.correction": _var,
    "std.correction": _std,
    "var_mean.correction": _var_mean,
    "amax": _along(np.max),
    "amin": _along(np.min),
    "max.default": _along(np.max),
    "min.default": _along(np.min),
    "max.dim": _extreme(np.argmax),
    "min.dim": _extreme(np.argmin),
    "argmax": _place(np.argmax),
    "argmin": _place(np.argmin),
    "any": _along(np.any),
    "all": _along(np.all),
    "count_nonzero": _along(np.count_nonzero),
    "prod": _prod,
    "linalg_vector_norm": _norm,
    "logsumexp": _logsumexp,
    "cumsum": _running(np.cumsum),
    "cumprod": _running(np.cumprod),
    "sort": _sort,
    "sort.stable": lambda made, x, *, stable=None, dim=-1, descending=False: _sort(made, x, dim, descending),
    "topk": _topk,
    "inverse_rms": inverse_rms,
}
