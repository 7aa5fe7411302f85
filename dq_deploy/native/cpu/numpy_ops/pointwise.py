"""Functions of single elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from dq_deploy.native.cpu.numpy_ops.made import Made, Table, pointwise
from dq_deploy.numerics.arrays import Array


def _erf(x: Array) -> Array:
    from scipy.special import erf

    return np.asarray(erf(x))


def _special(name: str) -> Any:
    def run(*args: Array) -> Array:
        import scipy.special

        return np.asarray(getattr(scipy.special, name)(*args))

    return run


def _gelu(x: Array, approximate: str = "none") -> Array:
    if approximate == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi).item() * (x + 0.044715 * x * x * x))))
    return np.asarray(0.5 * x * (1 + _erf(x * 0.5**0.5)))


def _silu(x: Array) -> Array:
    return np.asarray(x / (1 + np.exp(-x)))


def _softplus(x: Array, beta: float = 1, threshold: float = 20) -> Array:
    return np.where(x * beta > threshold, x, np.log1p(np.exp(x * beta)) / beta)


def _elu(x: Array, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Array:
    return np.where(x > 0, x * scale, np.expm1(x * input_scale) * (alpha * scale))


def _six(x: Array) -> Array:
    return np.asarray(np.clip(x + 3, 0, 6))


def _round(x: Array, decimals: int = 0) -> Array:
    return np.asarray(np.round(x, decimals))


def _add(a: Any, b: Any, alpha: float = 1) -> Any:
    return a + b if alpha == 1 else a + b * alpha


def _sub(a: Any, b: Any, alpha: float = 1) -> Any:
    return a - b if alpha == 1 else a - b * alpha


def _rsub(a: Any, b: Any, alpha: float = 1) -> Any:
    return b - a if alpha == 1 else b - a * alpha


def _div(a: Any, b: Any, rounding_mode: str | None = None) -> Any:
    if rounding_mode is None:
        return np.true_divide(a, b)
    if rounding_mode == "floor":
        return np.floor_divide(a, b)
    if np.result_type(a, b).kind in "iu":
        return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))
    return np.trunc(np.true_divide(a, b))


def _clamp(x: Array, min: Any = None, max: Any = None) -> Array:
    low = x if min is None else np.maximum(x, min)
    return np.asarray(low if max is None else np.minimum(low, max))


def _where(made: Made, condition: Array, a: Any, b: Any) -> Array:
    a, b = (v.astype(made.compute, copy=False) if isinstance(v, np.ndarray) else v for v in (a, b))
    return np.asarray(np.where(condition.astype(bool, copy=False), a, b))


def _masked_fill(made: Made, x: Array, mask: Array, value: Any) -> Array:
    return np.where(mask, np.asarray(value).astype(made.dtype), x)


def _nan_to_num(x: Array, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Array:
    return np.nan_to_num(x, nan=nan or 0.0, posinf=posinf, neginf=neginf)


_UNARY: dict[str, Any] = {
    "abs": np.abs,
    "neg": np.negative,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "square": np.square,
    "reciprocal": lambda x: 1 / x,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "ceil": np.ceil,
    "floor": np.floor,
    "trunc": np.trunc,
    "frac": lambda x: x - np.trunc(x),
    "round": _round,
    "sign": np.sign,
    "sgn": np.sign,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "isfinite": np.isfinite,
    "signbit": np.signbit,
    "logical_not": np.logical_not,
    "bitwise_not": np.invert,
    "erf": _erf,
    "erfc": _special("erfc"),
    "erfinv": _special("erfinv"),
    "lgamma": _special("gammaln"),
    "digamma": _special("digamma"),
    "i0": _special("i0"),
    "sinc": np.sinc,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": _silu,
    "gelu": _gelu,
    "softplus": _softplus,
    "elu": _elu,
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "hardtanh": lambda x, low=-1, high=1: np.minimum(np.maximum(x, low), high),
    "hardsigmoid": lambda x: _six(x) / 6,
    "hardswish": lambda x: x * _six(x) / 6,
    "leaky_relu": lambda x, slope=0.01: np.where(x > 0, x, x * slope),
    "log_sigmoid_forward": lambda x: -_softplus(-x),
    "nan_to_num": _nan_to_num,
}
_BINARY: dict[str, Any] = {
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "mul": np.multiply,
    "div": _div,
    "floor_divide": np.floor_divide,
    "pow": np.power,
    "fmod": np.fmod,
    "remainder": np.remainder,
    "atan2": np.arctan2,
    "hypot": np.hypot,
    "copysign": np.copysign,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "max.other": np.maximum,
    "min.other": np.minimum,
    "fmax": np.fmax,
    "fmin": np.fmin,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "bitwise_left_shift": np.left_shift,
    "bitwise_right_shift": np.right_shift,
    "__lshift__": np.left_shift,
    "__rshift__": np.right_shift,
    "heaviside": np.heaviside,
    "nextafter": np.nextafter,
    "logaddexp": np.logaddexp,
    "logaddexp2": np.logaddexp2,
    "xlogy": _special("xlogy"),
    "clamp": _clamp,
    "clamp_min": lambda x, low: np.maximum(x, low),
    "clamp_max": lambda x, high: np.minimum(x, high),
    "lerp": lambda a, b, weight: np.where(np.abs(weight) < 0.5, a + weight * (b - a), b - (b - a) * (1 - weight)),
    "addcmul": lambda x, a, b, value=1: x + value * a * b,
    "addcdiv": lambda x, a, b, value=1: x + value * a / b,
}
OPS: Table = {
    **{name: pointwise(function) for name, function in (*_UNARY.items(), *_BINARY.items())},
    "where": _where,
    "masked_fill": _masked_fill,
}
