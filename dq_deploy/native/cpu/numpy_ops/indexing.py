"""Look-ups, writes at places, paddings and re-orderings."""

from __future__ import annotations

from typing import Any

import numpy as np

from dq_deploy.native.cpu.numpy_ops.made import Made, NumpyOp, Table
from dq_deploy.numerics.arrays import Array


def _key(indices: list[Array | None]) -> tuple[Any, ...]:
    return tuple(slice(None) if i is None else i for i in indices)


def _index(made: Made, x: Array, indices: list[Array | None]) -> Array:
    return np.asarray(x[_key(indices)])


def _index_put(made: Made, x: Array, indices: list[Array | None], values: Array, accumulate: bool = False) -> Array:
    y = x.copy()
    if accumulate:
        np.add.at(y, _key(indices), values)
    else:
        y[_key(indices)] = values
    return y


def _index_select(made: Made, x: Array, dim: int, index: Array) -> Array:
    return np.take(x, index.reshape(-1), axis=dim) if x.ndim else x.copy()


def _embedding(made: Made, table: Array, index: Array, *_: Any) -> Array:
    low, high = int(index.min(initial=0)), int(index.max(initial=0))
    if low < 0 or high >= len(table):
        raise IndexError(f"index {low if low < 0 else high} is outside a table of {len(table)} rows")
    return np.asarray(table[index])


def _grid(shape: tuple[int, ...], dim: int, index: Array) -> tuple[Any, ...]:
    key: list[Any] = list(np.ogrid[tuple(slice(n) for n in shape)])
    key[dim] = index
    return tuple(key)


def _gather(made: Made, x: Array, dim: int, index: Array, sparse_grad: bool = False) -> Array:
    return np.asarray(x[_grid(index.shape, dim, index)]) if index.ndim else x.copy()


def _scatter(made: Made, x: Array, dim: int, index: Array, source: Any) -> Array:
    y = x.copy()
    if isinstance(source, np.ndarray):
        source = source[tuple(slice(n) for n in index.shape)]
    y[_grid(index.shape, dim, index)] = source
    return y


def _scatter_add(made: Made, x: Array, dim: int, index: Array, source: Array) -> Array:
    y = x.copy()
    np.add.at(y, _grid(index.shape, dim, index), source[tuple(slice(n) for n in index.shape)])
    return y


def _scatter_reduce(
    made: Made, x: Array, dim: int, index: Array, source: Array, reduce: str, include_self: bool = True
) -> Array:
    functions = {"sum": np.add, "prod": np.multiply, "amax": np.maximum, "amin": np.minimum}
    if reduce not in functions or not include_self:
        raise ValueError(f"scatter_reduce by {reduce} is none of {', '.join(functions)} with the values that are there")
    y = x.copy()
    functions[reduce].at(y, _grid(index.shape, dim, index), source[tuple(slice(n) for n in index.shape)])
    return y


def _cut(x: Array, dim: int, start: int | None, end: int | None, step: int) -> tuple[slice, ...]:
    return (*(slice(None),) * (dim % x.ndim), slice(start, end, step))


def _slice(
    made: Made, x: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Array:
    return np.asarray(x[_cut(x, dim, start, end, step)])


def _slice_scatter(
    made: Made, x: Array, source: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Array:
    y = x.copy()
    y[_cut(x, dim, start, end, step)] = source
    return y


def _select_scatter(made: Made, x: Array, source: Array, dim: int, index: int) -> Array:
    y = x.copy()
    np.moveaxis(y, dim, 0)[index] = source
    return y


def _diagonal_scatter(made: Made, x: Array, source: Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Array:
    y = np.ascontiguousarray(x.copy())
    places = np.arange(y.size).reshape(y.shape).diagonal(offset, dim1, dim2)
    y.reshape(-1)[places] = source
    return y


def _as_strided_scatter(
    made: Made, x: Array, source: Array, size: list[int], stride: list[int], storage_offset: int | None = None
) -> Array:
    flat, first = np.ascontiguousarray(x).reshape(-1).copy(), storage_offset or 0
    last = first + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if min(size, default=1) > 0 and (min(first, *stride) < 0 or last >= flat.size):
        raise ValueError(f"elements {first} to {last} of {flat.size} are written, expected those there are")
    seen = np.lib.stride_tricks.as_strided(flat[first:], tuple(size), tuple(s * flat.itemsize for s in stride))
    seen[...] = source
    return flat.reshape(x.shape)


def _pad(made: Made, x: Array, widths: list[int], value: float = 0.0) -> Array:
    pairs = [(0, 0)] * (x.ndim - len(widths) // 2)
    pairs += [(widths[i], widths[i + 1]) for i in range(len(widths) - 2, -1, -2)]
    kept = x[tuple(slice(max(-low, 0), n - max(-high, 0)) for n, (low, high) in zip(x.shape, pairs, strict=True))]
    return np.pad(kept, [(max(low, 0), max(high, 0)) for low, high in pairs], constant_values=value)


def _edged(mode: Any) -> NumpyOp:
    def run(made: Made, x: Array, widths: list[int]) -> Array:
        pairs = [(0, 0)] * (x.ndim - len(widths) // 2)
        pairs += [(widths[i], widths[i + 1]) for i in range(len(widths) - 2, -1, -2)]
        return np.asarray(np.pad(x, pairs, mode=mode))

    return run


def _roll(made: Made, x: Array, shifts: int | list[int], dims: int | list[int] | None = None) -> Array:
    if dims is None or dims == []:
        return np.roll(x, shifts[0] if isinstance(shifts, list) else shifts)
    return np.roll(x, tuple(shifts) if isinstance(shifts, list) else shifts, dims)


def _repeat(made: Made, x: Array, repeats: list[int]) -> Array:
    return np.tile(x, repeats)


def _repeat_interleave(made: Made, x: Array, repeats: Any, dim: int | None = None, output_size: Any = None) -> Array:
    return np.repeat(x, repeats, axis=dim)


def _searchsorted(
    made: Made,
    edges: Array,
    values: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Array | None = None,
) -> Array:
    where: Any = "right" if right or side == "right" else "left"
    if edges.ndim == 1:
        return np.asarray(np.searchsorted(edges, values, side=where, sorter=sorter))
    rows, sought = edges.reshape(-1, edges.shape[-1]), values.reshape(-1, values.shape[-1])
    found = [np.searchsorted(row, each, side=where) for row, each in zip(rows, sought, strict=True)]
    return np.stack(found).reshape(values.shape)


def _bucketize(made: Made, values: Any, edges: Array, *, out_int32: bool = False, right: bool = False) -> Array:
    return np.asarray(np.searchsorted(edges, values, side="right" if right else "left"))


OPS: Table = {
    "index": _index,
    "_unsafe_index": _index,
    "index_put": _index_put,
    "_unsafe_index_put": _index_put,
    "index_select": _index_select,
    "embedding": _embedding,
    "gather": _gather,
    "scatter.src": _scatter,
    "scatter.value": _scatter,
    "scatter_add": _scatter_add,
    "scatter_reduce": _scatter_reduce,
    "slice": _slice,
    "slice_scatter": _slice_scatter,
    "select_scatter": _select_scatter,
    "diagonal_scatter": _diagonal_scatter,
    "as_strided_scatter": _as_strided_scatter,
    "constant_pad_nd": _pad,
    "reflection_pad1d": _edged("reflect"),
    "reflection_pad2d": _edged("reflect"),
    "reflection_pad3d": _edged("reflect"),
    "replication_pad1d": _edged("edge"),
    "replication_pad2d": _edged("edge"),
    "replication_pad3d": _edged("edge"),
    "cat": lambda made, pieces, dim=0: np.concatenate([p for p in pieces if p.shape != (0,)] or pieces[:1], axis=dim),
    "stack": lambda made, pieces, dim=0: np.stack(pieces, axis=dim),
    "roll": _roll,
    "flip": lambda made, x, dims: np.flip(x, tuple(dims)),
    "repeat": _repeat,
    "repeat_interleave.self_int": _repeat_interleave,
    "tril": lambda made, x, diagonal=0: np.tril(x, diagonal),
    "triu": lambda made, x, diagonal=0: np.triu(x, diagonal),
    "searchsorted": _searchsorted,
    "bucketize": _bucketize,
}
