"""Complex numbers: pairs of floats seen as one, their parts, and Fourier transforms."""

from __future__ import annotations

from typing import Any

import numpy as np

from dq_deploy.native.cpu.numpy_ops.made import Made, Table
from dq_deploy.numerics.arrays import Array


def _paired(made: Made, x: Array) -> Array:
    return np.ascontiguousarray(x).view(made.dtype)[..., 0]


def _parts(made: Made, x: Array) -> Array:
    return np.stack([x.real, x.imag], -1)


def _polar(made: Made, size: Array, angle: Array) -> Array:
    y = np.empty(np.broadcast_shapes(size.shape, angle.shape), made.dtype)
    y.real, y.imag = size * np.cos(angle), size * np.sin(angle)
    return y


def _joined(made: Made, real: Array, imaginary: Array) -> Array:
    y = np.empty(np.broadcast_shapes(real.shape, imaginary.shape), made.dtype)
    y.real, y.imag = real, imaginary
    return y


def _scaled(values: Array, count: int, normalization: int) -> Array:
    """By nothing, by the root of the count, or by the count: torch's three."""
    return values if not normalization else values / (count**0.5 if normalization == 1 else count)


def _count(shape: tuple[int, ...], dim: list[int]) -> int:
    return int(np.prod([shape[d] for d in dim]))


def _r2c(made: Made, x: Array, dim: list[int], normalization: int, onesided: bool) -> Array:
    y = np.fft.rfftn(x, axes=dim) if onesided else np.fft.fftn(x, axes=dim)
    return _scaled(y, _count(x.shape, dim), normalization)


def _c2c(made: Made, x: Array, dim: list[int], normalization: int, forward: bool) -> Array:
    count = _count(x.shape, dim)
    y = np.fft.fftn(x, axes=dim) if forward else np.fft.ifftn(x, axes=dim) * count
    return _scaled(y, count, normalization)


def _c2r(made: Made, x: Array, dim: list[int], normalization: int, last_dim_size: int) -> Array:
    sizes = [*(x.shape[d] for d in dim[:-1]), last_dim_size]
    count = int(np.prod(sizes))
    return _scaled(np.fft.irfftn(x, s=sizes, axes=dim) * count, count, normalization)


def _conjugate(made: Made, x: Array, *_: Any) -> Array:
    return np.conj(x)


OPS: Table = {
    "view_as_complex": _paired,
    "view_as_real": _parts,
    "complex": _joined,
    "polar": _polar,
    "real": lambda made, x: x.real,
    "imag": lambda made, x: x.imag,
    "angle": lambda made, x: np.angle(x),
    "_conj": _conjugate,
    "_conj_physical": _conjugate,
    "conj_physical": _conjugate,
    "resolve_conj": lambda made, x: x,
    "_neg_view": lambda made, x: -x,
    "resolve_neg": lambda made, x: x,
    "_fft_r2c": _r2c,
    "_fft_c2c": _c2c,
    "_fft_c2r": _c2r,
}
