"""Pools of windows, their inverse, and pixels moved between channels and places."""

from __future__ import annotations

from typing import Any

import numpy as np

from dq_deploy.native.cpu.numpy_ops.made import Made, NumpyOp, Result, Table, wide
from dq_deploy.native.cpu.numpy_ops.products import windows
from dq_deploy.numerics.arrays import Array


def _several(values: int | list[int], rank: int) -> list[int]:
    listed = [values] if isinstance(values, int) else list(values)
    return listed * rank if len(listed) == 1 else listed


def _padded(
    x: Array, out: tuple[int, ...], kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> list[tuple[int, int]]:
    """Widths so that every window of the output lies inside; the last may hang over where sizes are rounded up."""
    sizes = x.shape[-len(kernel) :]
    reach = [(o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(out, stride, kernel, dilation, strict=True)]
    return [(p, max(r - n - p, 0)) for r, n, p in zip(reach, sizes, padding, strict=True)]


def _framed(x: Array, widths: list[tuple[int, int]], fill: Any) -> Array:
    return np.pad(x, [*[(0, 0)] * (x.ndim - len(widths)), *widths], constant_values=fill)


def _cut(seen: Array, out: tuple[int, ...], rank: int) -> Array:
    lead = seen.ndim - 2 * rank
    return seen[(*(slice(None),) * lead, *(slice(n) for n in out))]


def _average(rank: int) -> NumpyOp:
    def run(
        made: Made,
        x: Array,
        kernel_size: int | list[int],
        stride: int | list[int] | None = None,
        padding: int | list[int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Array:
        kernel = _several(kernel_size, rank)
        steps, around = (_several(stride, rank) if stride else kernel), _several(padding, rank)
        out, ones = made.shape[-rank:], [1] * rank
        widths = _padded(x, out, kernel, steps, around, ones)
        axes = tuple(range(-rank, 0))
        total = _cut(windows(_framed(wide(x), widths, 0), kernel, steps, ones), out, rank).sum(axes, dtype=np.float64)
        if divisor_override:
            return np.asarray(total / divisor_override)
        counted = np.ones(x.shape[-rank:])
        if count_include_pad:
            counted = np.pad(counted, [(p, p) for p in around], constant_values=1)
            widths = [(0, max(low + high - 2 * p, 0)) for (low, high), p in zip(widths, around, strict=True)]
        count = _cut(windows(_framed(counted, widths, 0), kernel, steps, ones), out, rank).sum(axes)
        return np.asarray(total / count)

    return run


def _largest(rank: int) -> NumpyOp:
    def run(
        made: Made,
        x: Array,
        kernel_size: int | list[int],
        stride: int | list[int] | None = None,
        padding: int | list[int] = 0,
        dilation: int | list[int] = 1,
        ceil_mode: bool = False,
    ) -> Result:
        kernel, apart = _several(kernel_size, rank), _several(dilation, rank)
        steps, around = (_several(stride, rank) if stride else kernel), _several(padding, rank)
        out = made.shape[-rank:]
        widths = _padded(x, out, kernel, steps, around, apart)
        fill = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        places = np.arange(np.prod(x.shape[-rank:])).reshape((1,) * (x.ndim - rank) + x.shape[-rank:])
        seen = _cut(windows(_framed(x, widths, fill), kernel, steps, apart), out, rank)
        where = _cut(windows(_framed(places, widths, 0), kernel, steps, apart), out, rank)
        flat = seen.reshape(*seen.shape[:-rank], -1)
        best = flat.argmax(-1)[..., None]
        held = np.broadcast_to(where.reshape(*where.shape[:-rank], -1), flat.shape)
        return np.take_along_axis(flat, best, -1)[..., 0], np.take_along_axis(held, best, -1)[..., 0]

    return run


def _adaptive(rank: int) -> NumpyOp:
    """Means of windows whose edges are rounded outwards."""

    def run(made: Made, x: Array, output_size: list[int]) -> Array:
        y = wide(x).astype(np.float64)
        for axis in range(x.ndim - rank, x.ndim):
            size, out = y.shape[axis], made.shape[axis]
            edges = [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]
            y = np.stack([y.take(range(low, high), axis).mean(axis) for low, high in edges], axis)
        return y

    return run


def _adaptive_largest(rank: int) -> NumpyOp:
    def run(made: Made, x: Array, output_size: list[int]) -> Result:
        y = x
        for axis in range(x.ndim - rank, x.ndim):
            size, out = y.shape[axis], made.shape[axis]
            edges = [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]
            y = np.stack([y.take(range(low, high), axis).max(axis) for low, high in edges], axis)
        return (y,)

    return run


def _pixel_shuffle(made: Made, x: Array, factor: int) -> Array:
    *lead, c, h, w = x.shape
    split = x.reshape(*lead, c // factor**2, factor, factor, h, w)
    n = len(lead)
    return split.transpose(*range(n), n, n + 3, n + 1, n + 4, n + 2).reshape(made.shape)


def _pixel_unshuffle(made: Made, x: Array, factor: int) -> Array:
    *lead, c, h, w = x.shape
    split = x.reshape(*lead, c, h // factor, factor, w // factor, factor)
    n = len(lead)
    return split.transpose(*range(n), n, n + 2, n + 4, n + 1, n + 3).reshape(made.shape)


def _channel_shuffle(made: Made, x: Array, groups: int) -> Array:
    return x.reshape(x.shape[0], groups, -1, *x.shape[2:]).swapaxes(1, 2).reshape(made.shape)


def _im2col(
    made: Made, x: Array, kernel_size: list[int], dilation: list[int], padding: list[int], stride: list[int]
) -> Array:
    framed = _framed(x, [(p, p) for p in padding], 0)
    seen = windows(framed, list(kernel_size), list(stride), list(dilation))  # [..., C, oh, ow, kh, kw]
    n = seen.ndim
    return np.moveaxis(seen, (n - 2, n - 1), (n - 4, n - 3)).reshape(made.shape)


def _col2im(
    made: Made,
    x: Array,
    output_size: list[int],
    kernel_size: list[int],
    dilation: list[int],
    padding: list[int],
    stride: list[int],
) -> Array:
    batched = x if x.ndim == 3 else x[None]
    (kh, kw), (h, w) = kernel_size, (n + 2 * p for n, p in zip(output_size, padding, strict=True))
    oh = (h - (kh - 1) * dilation[0] - 1) // stride[0] + 1
    ow = (w - (kw - 1) * dilation[1] - 1) // stride[1] + 1
    columns = batched.reshape(len(batched), -1, kh, kw, oh, ow)
    y = np.zeros((*columns.shape[:2], h, w), np.float64)
    for i, j in np.ndindex(kh, kw):
        top, left = i * dilation[0], j * dilation[1]
        rows = slice(top, top + (oh - 1) * stride[0] + 1, stride[0])
        y[:, :, rows, left : left + (ow - 1) * stride[1] + 1 : stride[1]] += columns[:, :, i, j]
    inside = y[:, :, padding[0] : h - padding[0], padding[1] : w - padding[1]]
    return np.asarray(inside.reshape(made.shape))


OPS: Table = {
    "avg_pool1d": _average(1),
    "avg_pool2d": _average(2),
    "avg_pool3d": _average(3),
    "max_pool2d_with_indices": _largest(2),
    "max_pool3d_with_indices": _largest(3),
    "_adaptive_avg_pool2d": _adaptive(2),
    "adaptive_avg_pool1d": _adaptive(1),
    "_adaptive_avg_pool3d": _adaptive(3),
    "adaptive_max_pool2d": _adaptive_largest(2),
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "channel_shuffle": _channel_shuffle,
    "im2col": _im2col,
    "col2im": _col2im,
}
