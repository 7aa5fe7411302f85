"""What an operation in numpy is told besides its arguments, and what a table of them is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dq_deploy.numerics.arrays import Array


@dataclass(frozen=True, kw_only=True)
class Made:
    """What torch makes of an operation; of the first result where there are several.

    Attributes:
        shape: of the result.
        dtype: of the result.
        compute: what torch's rules of promotion compute in.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    compute: np.dtype[Any]


Result = Array | tuple[Array, ...]

NumpyOp = Callable[..., Result]
"""Takes a `Made`, then the arguments by torch's schema: arrays, numbers, lists of them."""

Table = Mapping[str, NumpyOp]
"""Operations by torch's name with the overload (`max.dim`), or without where all overloads are one function."""


def pointwise(function: Callable[..., Any]) -> NumpyOp:
    """A function of single elements: its arrays are first brought to the type that torch computes in."""

    def run(made: Made, *args: Any, **kwargs: Any) -> Array:
        real = made.compute.kind != "c"  # the size of a complex number is a real one

        def cast(value: Any) -> Any:
            kept = not isinstance(value, np.ndarray) or (real and value.dtype.kind == "c")
            return value if kept else value.astype(made.compute, copy=False)

        return np.asarray(function(*map(cast, args), **kwargs))

    return run


def axes_of(dim: int | list[int] | None, ndim: int) -> tuple[int, ...]:
    """Axes by torch's numbers; none and an empty list are all of them."""
    if dim is None or dim == []:
        return tuple(range(ndim))
    return tuple(d % max(ndim, 1) for d in ([dim] if isinstance(dim, int) else dim) if ndim)


def wide(x: Array) -> Array:
    """Float16 as float32, which torch computes it in; anything else as it is."""
    return x.astype(np.float32) if x.dtype == np.float16 else x
