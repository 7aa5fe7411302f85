"""Images of another size: nearest pixels, lines, cubics, with and without smoothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dq_deploy.native.cpu.numpy_ops.made import Made, NumpyOp, Table, wide
from dq_deploy.numerics.arrays import Array

Weights = Callable[[Array], Array]


def _scales(given: tuple[Any, ...], rank: int) -> list[float | None]:
    """Factors by axis where the caller gave some; torch then does not compute them from the sizes."""
    values = given[0] if len(given) == 1 and isinstance(given[0], list) else list(given)
    return [*(values or []), *[None] * rank][:rank]


def _ratio(size: int, out: int, scale: float | None) -> np.float32:
    """Pixels of the source for one of the result, in float32 as torch has it."""
    if scale is not None and scale > 0:
        return np.float32(1 / scale)
    return np.float32(size) / np.float32(out)


def nearest_places(size: int, out: int, scale: float | None, *, exact: bool = False) -> Array:
    """Index of the source for each place of the result."""
    places = np.arange(out, dtype=np.float32) + np.float32(0.5 if exact else 0)
    return np.minimum((places * _ratio(size, out, scale)).astype(np.int64), size - 1)


def _nearest(rank: int, *, exact: bool = False) -> NumpyOp:
    def run(made: Made, x: Array, output_size: Any, *scales: Any) -> Array:
        for axis, scale in zip(range(x.ndim - rank, x.ndim), _scales(scales, rank), strict=True):
            x = x.take(nearest_places(x.shape[axis], made.shape[axis], scale, exact=exact), axis)
        return x

    return run


def _source(size: int, out: int, scale: float | None, *, corners: bool, cubic: bool) -> Array:
    """Place in the source, float32, of each place of the result."""
    places = np.arange(out, dtype=np.float32)
    if corners:
        return np.asarray(places * (np.float32(size - 1) / np.float32(out - 1) if out > 1 else np.float32(0)))
    found = (places + np.float32(0.5)) * _ratio(size, out, scale) - np.float32(0.5)
    return np.asarray(found if cubic else np.maximum(found, 0))


def _along(x: Array, axis: int, places: list[Array], weights: list[Array]) -> Array:
    shape = (-1, *(1,) * (x.ndim - axis - 1))
    terms = [x.take(p, axis) * w.reshape(shape) for p, w in zip(places, weights, strict=True)]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return np.asarray(total)


def _linear(rank: int) -> NumpyOp:
    def run(made: Made, x: Array, output_size: Any, align_corners: bool, *scales: Any) -> Array:
        x = wide(x)
        for axis, scale in zip(range(x.ndim - rank, x.ndim), _scales(scales, rank), strict=True):
            size = x.shape[axis]
            source = _source(size, made.shape[axis], scale, corners=align_corners, cubic=False)
            low = np.minimum(source.astype(np.int64), size - 1)
            part = np.clip(source - low.astype(np.float32), 0, 1).astype(np.float32)
            x = _along(x, axis, [low, np.minimum(low + 1, size - 1)], [1 - part, part])
        return x

    return run


def _cubic_weight(distance: Array, a: float) -> Array:
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def _cubic(made: Made, x: Array, output_size: Any, align_corners: bool, *scales: Any) -> Array:
    x = wide(x)
    for axis, scale in zip(range(x.ndim - 2, x.ndim), _scales(scales, 2), strict=True):
        size = x.shape[axis]
        source = _source(size, made.shape[axis], scale, corners=align_corners, cubic=True)
        low = np.floor(source)
        part = (source - low).astype(np.float64)
        places = [np.clip(low.astype(np.int64) + i, 0, size - 1) for i in (-1, 0, 1, 2)]
        x = _along(x, axis, places, [_cubic_weight(part - i, -0.75).astype(x.dtype) for i in (-1, 0, 1, 2)])
    return x


def _triangle(distance: Array) -> Array:
    return np.asarray(np.maximum(1 - np.abs(distance), 0))


def _smoothed(weight: Weights, support: float) -> NumpyOp:
    """Each result is a sum of all pixels under a filter that widens where the image shrinks."""

    def run(made: Made, x: Array, output_size: Any, align_corners: bool, *scales: Any) -> Array:
        x = wide(x)
        for axis, scale in zip(range(x.ndim - 2, x.ndim), _scales(scales, 2), strict=True):
            size, out = x.shape[axis], made.shape[axis]
            if align_corners:
                ratio = (size - 1) / (out - 1) if out > 1 else 0.0
            else:
                ratio = 1 / scale if scale is not None and scale > 0 else size / out
            wider = max(ratio, 1.0)
            centre = ratio * (np.arange(out) + 0.5)
            first = np.maximum((centre - support * wider + 0.5).astype(np.int64), 0)
            last = np.minimum((centre + support * wider + 0.5).astype(np.int64), size)
            pixels = np.arange(size)
            inside = (pixels[None] >= first[:, None]) & (pixels[None] < last[:, None])
            matrix = np.where(inside, weight((pixels[None] - centre[:, None] + 0.5) / wider), 0)
            matrix /= matrix.sum(1, keepdims=True)
            x = np.moveaxis(np.moveaxis(x, axis, -1) @ matrix.T.astype(x.dtype), -1, axis)
        return x

    return run


OPS: Table = {
    "upsample_nearest1d": _nearest(1),
    "upsample_nearest2d": _nearest(2),
    "upsample_nearest3d": _nearest(3),
    "_upsample_nearest_exact1d": _nearest(1, exact=True),
    "_upsample_nearest_exact2d": _nearest(2, exact=True),
    "_upsample_nearest_exact3d": _nearest(3, exact=True),
    "upsample_linear1d": _linear(1),
    "upsample_bilinear2d": _linear(2),
    "upsample_trilinear3d": _linear(3),
    "upsample_bicubic2d": _cubic,
    "_upsample_bilinear2d_aa": _smoothed(_triangle, 1),
    "_upsample_bicubic2d_aa": _smoothed(lambda d: _cubic_weight(d, -0.5), 2),
}
