"""Small operations between the kernels, by numpy: the time embedding's sines, a look-up of a class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dq_deploy.numerics.arrays import Array


def _silu(x: Array) -> Array:
    y: Array = (x / (1 + np.exp(-x))).astype(x.dtype)
    return y


def _pad(x: Array, widths: list[int], value: float = 0.0) -> Array:
    pairs = [(0, 0)] * (x.ndim - len(widths) // 2)
    pairs += [(widths[i], widths[i + 1]) for i in range(len(widths) - 2, -1, -2)]
    return np.pad(x, pairs, constant_values=value)


def _addmm(bias: Array, x: Array, w: Array) -> Array:
    return x @ w + bias


def _clone(x: Array) -> Array:
    return x.copy()


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "ones": lambda shape: np.ones(shape, np.float32),
    "zeros": lambda shape: np.zeros(shape, np.float32),
    "full": np.full,
    "arange": np.arange,
    "exp": np.exp,
    "sin": np.sin,
    "cos": np.cos,
    "neg": np.negative,
    "pow": np.power,
    "add": lambda a, b, alpha=1: a + b * alpha if alpha != 1 else a + b,
    "sub": lambda a, b, alpha=1: a - b * alpha if alpha != 1 else a - b,
    "mul": np.multiply,
    "div": np.divide,
    "cat": lambda pieces, dim=0: np.concatenate(pieces, axis=dim),
    "embedding": lambda table, index, *_: table[index],
    "_to_copy": _clone,
    "clone": _clone,
    "silu": _silu,
    "addmm": _addmm,
    "mm": np.matmul,
    "constant_pad_nd": _pad,
}
"""By the name torch gives the operation."""


def call(function: str, arguments: Any, named: Mapping[str, Any], reads: Mapping[str, Array]) -> Array:
    """The value of one operation; `{"read": role}` in the arguments stands for an array.

    Args:
        function: a name of `FUNCTIONS`.
        arguments: positional arguments as JSON.
        named: keyword arguments as JSON.
        reads: arrays by role.
    """

    def filled(value: Any) -> Any:
        if isinstance(value, dict) and value.keys() == {"read"}:
            return reads[value["read"]]
        return [filled(entry) for entry in value] if isinstance(value, list) else value

    with np.errstate(all="ignore"):  # torch says nothing of an overflow either
        result: Array = np.asarray(FUNCTIONS[function](*filled(arguments), **named))
    return result
