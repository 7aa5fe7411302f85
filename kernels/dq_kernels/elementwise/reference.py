"""The elementwise operations in float32 numpy, rounded after every operation: the kernels give the same bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dq_kernels.arrays import Floats

TWO_OPERANDS = ("add", "sub", "mul", "div")
SCALAR = ("add_scalar", "mul_scalar", "div_scalar")


def elementwise(kind: str, a: Floats, b: Floats | None = None, *, scalar: float = 0.0) -> Floats:
    """Result y = kind(a, b), broadcast as numpy does; `scalar` is the second operand of the _scalar kinds."""
    with np.errstate(all="ignore"):
        if kind in TWO_OPERANDS:
            assert b is not None
            y: Floats = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[kind](a, b)
            return y
        if kind in SCALAR:
            return elementwise(kind.removesuffix("_scalar"), a, np.array([scalar], np.float32))
        return KINDS[kind](a)


def exp32(v: Floats) -> Floats:
    """e^v for v clamped to [-87, 88], in float32 operations alone."""
    f = np.float32
    v = np.where(v < f(-87), f(-87), v)
    v = np.where(v > f(88), f(88), v)
    n = np.rint(v * f(1.44269504))
    r = v - n * f(0.693359375)
    r = r - n * f(-2.12194440e-4)
    p = np.full_like(r, f(1.9875691500e-4))
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + f(c)
    e = (p * (r * r) + r) + f(1)
    scale: Floats = (np.nan_to_num(n).astype(np.int32) + 127 << 23).view(np.float32)
    y: Floats = e * scale
    return y


def gelu(g: Floats) -> Floats:
    """Gelu, g * 0.5 * erfc(-g / sqrt 2), with erfc by a fit (within 1.2e-7)."""
    f = np.float32
    z = np.abs(g) * f(0.70710678)
    t = f(1) / (f(1) + f(0.5) * z)
    p = np.full_like(t, f(0.17087277))
    inner = (-0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368)
    for c in inner:
        p = f(c) + t * p
    h = t * exp32((-(z * z) - f(1.26551223)) + t * p)
    erfc: Floats = np.where(g >= 0, f(2) - h, h)
    y: Floats = g * (f(0.5) * erfc)
    return y


def tanh32(u: Floats) -> Floats:
    """tanh, by a polynomial below 0.625 and by exp32 above."""
    f = np.float32
    z = u * u
    p = np.full_like(z, f(-5.70498872745e-3))
    for c in (2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1):
        p = p * z + f(c)
    near = p * z * u + u
    size = np.abs(u)
    tail = f(1) - f(2) / (exp32(f(2) * size) + f(1))
    y: Floats = np.where(size < f(0.625), near, np.where(u < 0, -tail, tail))
    return y


def gelu_tanh(g: Floats) -> Floats:
    """The tanh form of gelu."""
    f = np.float32
    u = f(0.79788456) * (g + f(0.044715) * (g * g * g))
    y: Floats = (f(0.5) * g) * (f(1) + tanh32(u))
    return y


def sigmoid(v: Floats) -> Floats:
    """1 / (1 + e^-v)."""
    y: Floats = np.float32(1) / (np.float32(1) + exp32(-v))
    return y


KINDS: dict[str, Callable[[Floats], Floats]] = {
    "copy": np.copy,
    "silu": lambda a: a / (np.float32(1) + exp32(-a)),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "sigmoid": sigmoid,
    "tanh": tanh32,
    "relu": lambda a: np.where(a < 0, np.float32(0), a),
}
"""Kinds with one operand."""
