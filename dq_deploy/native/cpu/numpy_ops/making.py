"""New arrays: fills, ranges, copies, and what is drawn from an array's shape alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from dq_deploy.native.cpu.numpy_ops.made import Made, NumpyOp, Table
from dq_deploy.numerics.arrays import Array


def _filled(number: float) -> NumpyOp:
    def run(made: Made, *_: Any) -> Array:
        return np.full(made.shape, number, made.dtype)

    return run


def _full(made: Made, _: Any, value: float) -> Array:
    return np.full(made.shape, value, made.dtype)


def _new_full(made: Made, _: Array, shape: list[int], value: float) -> Array:
    return np.full(made.shape, value, made.dtype)


def _scalar(made: Made, value: float) -> Array:
    return np.asarray(value, made.dtype)


def _arange(made: Made, *limits: float) -> Array:
    start: Any = limits[0] if len(limits) > 1 else 0
    step: Any = limits[2] if len(limits) > 2 else 1
    places: Array = np.arange(made.shape[0], dtype=np.float64 if made.dtype.kind == "f" else np.int64)
    return np.asarray(start + places * step)


def _linspace(made: Made, start: Any, end: Any, steps: int) -> Array:
    kind: Any = np.float64 if made.dtype == np.float64 else np.float32
    first, last = kind(start), kind(end)
    if steps < 2:
        return np.full(made.shape, first)
    step, places = (last - first) / kind(steps - 1), np.asarray(np.arange(steps))
    back = (steps - 1 - places).astype(kind)
    return np.asarray(np.where(places < steps // 2, first + step * places.astype(kind), last - step * back))


def _eye(made: Made, *_: Any) -> Array:
    return np.eye(*made.shape, dtype=made.dtype)


def _copied(made: Made, x: Array, *_: Any) -> Array:
    return x.astype(made.dtype)


def _written(made: Made, x: Array, source: Array, *_: Any) -> Array:
    return np.broadcast_to(source, x.shape).astype(made.dtype)


def _expanded(made: Made, x: Array, *_: Any, **__: Any) -> Array:
    return np.broadcast_to(x, made.shape)


def _reshaped(made: Made, x: Array, *_: Any, **__: Any) -> Array:
    return x.reshape(made.shape)


def _seen_as(made: Made, x: Array, *_: Any) -> Array:
    return np.ascontiguousarray(x).view(made.dtype)


OPS: Table = {
    "zeros": _filled(0),
    "zeros_like": _filled(0),
    "new_zeros": _filled(0),
    "ones": _filled(1),
    "ones_like": _filled(1),
    "new_ones": _filled(1),
    "empty": _filled(0),
    "empty_like": _filled(0),
    "new_empty": _filled(0),
    "empty_strided": _filled(0),
    "new_empty_strided": _filled(0),
    "empty_permuted": _filled(0),
    "full": _full,
    "full_like": _full,
    "fill": _full,
    "new_full": _new_full,
    "scalar_tensor": _scalar,
    "arange": _arange,
    "linspace": _linspace,
    "eye": _eye,
    "clone": _copied,
    "_to_copy": _copied,
    "lift_fresh_copy": _copied,
    "lift_fresh": _copied,
    "contiguous": _copied,
    "copy": _written,
    "expand": _expanded,
    "expand_copy": _expanded,
    "view": _reshaped,
    "view_copy": _reshaped,
    "_reshape_copy": _reshaped,
    "_unsafe_view": _reshaped,
    "view.dtype": _seen_as,
}
