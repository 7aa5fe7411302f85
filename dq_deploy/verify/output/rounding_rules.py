"""The error of each operation: what an engine's float rounding adds, and what it makes of its inputs' errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Bound: TypeAlias = Tensor | None

FUNCTION = 8.0
"""Units by which engines' exp, sigmoid, erf and the like are off, as a share of their largest value."""

EXTRA = 4.0
"""Units a sum is off besides those of its terms: products, the scale in front, the last store."""

EXACT_MAKERS = frozenset(
    f"aten::{name}"
    for name in (
        "arange", "full", "zeros", "ones", "empty", "scalar_tensor", "full_like", "zeros_like", "ones_like",
        "new_zeros", "new_ones", "new_full", "empty_like", "new_empty", "empty_strided",
    )
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Call:
    """One operation that ran.

    Attributes:
        func: the aten operation.
        args: its arguments, tensors in float64.
        kwargs: likewise.
        bounds: of those of its tensors that have one, by id.
        result: what it gave.
        unit: unit roundoff.
        attention_unit: of what attention's two products take; 0 where that is not rounded.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    bounds: dict[int, Tensor]
    result: Any
    unit: float
    attention_unit: float = 0.0

    def bound(self, value: Any) -> Bound:
        """The bound of an argument, None where it is exact."""
        return self.bounds.get(id(value)) if isinstance(value, Tensor) else None

    def error(self, value: Any) -> Tensor | float:
        """The same, as a number to reckon with."""
        found = self.bound(value)
        return 0.0 if found is None else found


Rule = Callable[[Call], Any]


def _magnitude(value: Any) -> Any:
    return value.abs() if isinstance(value, Tensor) else abs(value)


def moved(call: Call) -> Any:
    """Values that only change their place: their bounds change it likewise."""
    if not call.bounds:
        return None

    def bounds(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            found = call.bound(value)
            return torch.zeros_like(value) if found is None else found
        return type(value)(bounds(entry) for entry in value) if isinstance(value, (list, tuple)) else value

    args = list(bounds(call.args))
    if call.func.overloadpacket.__name__ in ("view", "_unsafe_view", "reshape"):  # a bound may lie in another order
        return args[0].reshape(call.result.shape)
    if call.func.overloadpacket.__name__ == "constant_pad_nd":
        args = args[:2]
    return call.func(*args, **call.kwargs)


def averaged(call: Call) -> Any:
    """Sums with weights that are not negative: of the bounds, and roundings of the sum of magnitudes."""
    x = call.args[0]
    terms = max(1.0, x.numel() / max(1, call.result.numel()))
    rest = call.args[1:]
    spread = call.func(x.abs(), *rest, **call.kwargs) * ((math.sqrt(terms) + EXTRA) * call.unit)
    own = call.bound(x)
    return spread if own is None else spread + call.func(own, *rest, **call.kwargs)


def added(call: Call) -> Any:
    """Sums and differences: both errors, and two roundings, for an engine may add several in another order."""
    alpha = abs(float(call.kwargs.get("alpha", 1)))
    if not call.bounds and not all(isinstance(v, Tensor) for v in call.args[:2]) and call.args[1] == 0:
        return None
    return call.error(call.args[0]) + alpha * call.error(call.args[1]) + 2 * call.unit * call.result.abs()


def multiplied(call: Call) -> Any:
    """A * b: each error times the other, and one rounding."""
    a, b = call.args[:2]
    ea, eb = call.error(a), call.error(b)
    return _magnitude(a) * eb + _magnitude(b) * ea + ea * eb + call.unit * call.result.abs()


def divided(call: Call) -> Any:
    """A / b: (ea + |a / b| eb) / (|b| - eb), and two roundings, for some engines multiply by 1 / b."""
    a, b = call.args[:2]
    ea, eb = call.error(a), call.error(b)
    least = _magnitude(b) - eb
    least = least.clamp_min(1e-300) if isinstance(least, Tensor) else max(least, 1e-300)
    return (ea + call.result.abs() * eb) / least + 2 * call.unit * call.result.abs()


def _smooth(slope: float, scale: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    """A function of one value: its largest slope times the error, and units of a magnitude that `scale` gives."""

    def rule(call: Call) -> Any:
        x = call.args[0]
        return slope * call.error(x) + FUNCTION * call.unit * scale(x, call.result)

    return rule


def _of_input(x: Tensor, _y: Tensor) -> Tensor:
    return x.abs()


def _of_one(_x: Tensor, y: Tensor) -> Tensor:
    return torch.ones_like(y)


def _of_angle(x: Tensor, _y: Tensor) -> Tensor:
    """Reducing a large angle loses a part of it."""
    return 1 + x.abs() / FUNCTION


def exponential(call: Call) -> Any:
    """exp(x): |y| (exp(e) - 1), and rounding of the result and of the reduced exponent."""
    x, y = call.args[0], call.result
    e = torch.expm1(call.error(x) + torch.zeros_like(x))
    return y.abs() * (e + (FUNCTION + x.abs()) * call.unit)


def rooted(call: Call) -> Any:
    """Sqrt and rsqrt: half the relative error of x, and rounding."""
    x, y = call.args[0], call.result
    share = call.error(x) / x.abs().clamp_min(1e-300)
    return y.abs() * (share + 2 * call.unit)


def raised(call: Call) -> Any:
    """X ** n for a number n: n times the relative error, and rounding. For a number b: b ** x is exp(x ln b)."""
    x, n = call.args[:2]
    if isinstance(x, Tensor) and not isinstance(n, Tensor):
        share = call.error(x) / x.abs().clamp_min(1e-300)
        return call.result.abs() * abs(n) * share + FUNCTION * call.unit * call.result.abs()
    if not isinstance(x, Tensor) and x > 0:
        log = abs(math.log(x))
        e = torch.expm1(log * call.error(n) + torch.zeros_like(call.result))
        return call.result.abs() * (e + (FUNCTION + log * _magnitude(n)) * call.unit)
    return FUNCTION * call.unit * call.result.abs() * (1 + _magnitude(n)) if not call.bounds else _far(call)


def spaced(call: Call) -> Any:
    """Linspace: engines step from either end, and round the step, the product and the sum."""
    ends = max(abs(float(value)) for value in call.args[:2])
    return torch.full_like(call.result, EXTRA * call.unit * ends)


def subtracted_from(call: Call) -> Any:
    """Rsub: b - alpha * a, as `added`."""
    alpha = abs(float(call.kwargs.get("alpha", 1)))
    return alpha * call.error(call.args[0]) + call.error(call.args[1]) + 2 * call.unit * call.result.abs()


def _far(call: Call) -> Tensor:
    """No bound at all: anything goes."""
    return torch.full_like(call.result, float("inf"))


def _product(
    call: Call, a: Tensor, b: Tensor, terms: int, multiply: Callable[[Tensor, Tensor], Tensor], extra: Any = 0.0
) -> Any:
    """A sum of `terms` products: |a| eb + ea |b|, and roundings of the sum of |a| |b|."""
    ea, eb = call.bound(a), call.bound(b)
    size = a.abs()
    total = multiply(size, b.abs()) * ((math.sqrt(terms) + EXTRA) * call.unit)
    if eb is not None:
        total = total + multiply(size + (0.0 if ea is None else ea), eb)
    if ea is not None:
        total = total + multiply(ea, b.abs())
    return total + extra


def matrix(call: Call) -> Any:
    """Mm and bmm."""
    a, b = call.args[:2]
    return _product(call, a, b, a.shape[-1], torch.matmul)


def matrix_added(call: Call) -> Any:
    """Addmm and baddbmm: beta * bias + alpha * (a @ b)."""
    bias, a, b = call.args[:3]
    alpha, beta = (abs(float(call.kwargs.get(name, 1))) for name in ("alpha", "beta"))
    sum_error = alpha * _product(call, a, b, a.shape[-1], torch.matmul)
    if beta == 0:  # the bias is not even read
        return sum_error
    return sum_error + beta * call.error(bias) + 2 * call.unit * (call.result.abs() + beta * bias.abs())


def linear(call: Call) -> Any:
    """X @ w.T + bias."""
    x, w = call.args[:2]
    bias = call.args[2] if len(call.args) > 2 else call.kwargs.get("bias")
    extra = 0.0 if bias is None else call.error(bias) + 2 * call.unit * (call.result.abs() + bias.abs())
    return _product(call, x, w, x.shape[-1], torch.nn.functional.linear, extra)


def convolved(call: Call) -> Any:
    """Convolution with a bias."""
    x, w, bias, *rest = call.args
    terms = w[0].numel()

    def multiply(a: Tensor, b: Tensor) -> Tensor:
        made: Tensor = torch.ops.aten.convolution(a, b, None, *rest)
        return made

    shape = (1, -1, *(1 for _ in range(w.ndim - 2)))
    extra: Any = 0.0
    if bias is not None:
        extra = call.error(bias) + 2 * call.unit * (call.result.abs() + bias.abs().reshape(shape))
    return _product(call, x, w, terms, multiply, extra)


def softmax(call: Call) -> Any:
    """Probabilities p of scores s: p (e + sum p e), with the roundings of s - max, exp and the sum in e."""
    return softmax_error(call.args[0], call.error(call.args[0]), call.result, int(call.args[1]), call.unit)


def softmax_error(scores: Tensor, error: Any, p: Tensor, axis: int, unit: float) -> Tensor:
    """The bound of probabilities whose scores are off by `error`."""
    below = scores.amax(axis, keepdim=True) - scores
    below = torch.where(torch.isfinite(below), below, torch.zeros_like(below))
    own = error + (FUNCTION + below) * unit
    mean = (p * own).sum(axis, keepdim=True)
    return p * (torch.expm1(own + mean) + (math.sqrt(scores.shape[axis]) + EXTRA) * unit) + unit * 2.0**-100


def attention(call: Call) -> Any:
    """softmax(q k.T * scale + mask) v, as its three steps; each product's two operands may be rounded first."""
    q, k, v = call.args[:3]
    names = [a.name for a in call.func._schema.arguments]
    given = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
    scale = given.get("scale")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    mask = given.get("attn_mask")
    mask = given.get("attn_bias") if mask is None else mask
    scores = torch.matmul(q, k.transpose(-1, -2)) * scale
    kt = k.transpose(-1, -2)
    bounds = dict(call.bounds)
    if id(k) in bounds:
        bounds[id(kt)] = bounds[id(k)].transpose(-1, -2)
    inner = Call(func=call.func, args=(q, kt), kwargs={}, bounds=bounds, result=scores, unit=call.unit)
    error = abs(scale) * _product(inner, q, kt, q.shape[-1], torch.matmul) + 2 * call.unit * scores.abs()
    rounded = 2 * call.attention_unit + call.attention_unit**2
    if rounded:
        error = error + rounded * abs(scale) * torch.matmul(q.abs(), k.abs().transpose(-1, -2))
    if mask is not None:
        allowed = torch.where(mask, 0.0, float("-inf")) if mask.dtype == torch.bool else mask
        scores, error = scores + allowed, error + call.error(mask) + call.unit * scores.abs()
    if given.get("is_causal"):
        shape = scores.shape[-2:]
        hidden = torch.ones(shape, dtype=torch.bool).tril().logical_not()
        scores = scores.masked_fill(hidden, float("-inf"))
    p = torch.softmax(scores, -1)
    p_error = softmax_error(scores, error, p, -1, call.unit)
    weighted = Call(
        func=call.func, args=(p, v), kwargs={}, bounds={**call.bounds, id(p): p_error}, result=None, unit=call.unit
    )
    total = _product(weighted, p, v, p.shape[-1], torch.matmul)
    if rounded:
        total = total + rounded * torch.matmul(p + p_error, v.abs())
    return total if isinstance(call.result, Tensor) else [total, *([None] * (len(call.result) - 1))]


def _normed(call: Call, x: Tensor, axes: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    """(x - mean) / sqrt(var + eps) and its bound, over some axes that are kept.

    Mean and variance are sums; an engine may compute x * r - mean * r, which rounds both terms.
    """
    e = call.error(x) + torch.zeros_like(x)
    terms = math.prod(x.shape[a] for a in axes)
    u, sums = call.unit, (math.sqrt(terms) + EXTRA) * call.unit
    mean = x.mean(axes, keepdim=True)
    mean_error = e.mean(axes, keepdim=True) + sums * x.abs().mean(axes, keepdim=True)
    centred = x - mean
    off = e + mean_error + u * centred.abs()
    variance = centred.square().mean(axes, keepdim=True)
    variance_error = 2 * (centred.abs() * off).mean(axes, keepdim=True) + sums * variance
    r = (variance + eps).rsqrt()
    share = variance_error / (2 * (variance + eps)) + EXTRA * u
    y = centred * r
    return y, off * r + y.abs() * share + 2 * u * (x.abs() + mean.abs()) * r


def _affine(call: Call, y: Tensor, e: Tensor, gamma: Any, beta: Any) -> Tensor:
    total = e if gamma is None else e * gamma.abs() + y.abs() * call.error(gamma)
    out = y if gamma is None else y * gamma
    total = total + 2 * call.unit * out.abs()
    return total if beta is None else total + call.error(beta) + 2 * call.unit * (out.abs() + beta.abs())


def layer_norm(call: Call) -> Any:
    """Over the last axes."""
    x, shape = call.args[:2]
    gamma, beta, eps = (*call.args[2:], None, None, 1e-5)[:3] if len(call.args) < 5 else call.args[2:5]
    y, e = _normed(call, x, tuple(range(-len(shape), 0)), float(eps))
    bound = _affine(call, y, e, gamma, beta)
    return bound if isinstance(call.result, Tensor) else [bound, None, None]


def group_norm(call: Call) -> Any:
    """native_group_norm(x, gamma, beta, N, C, HxW, groups, eps)."""
    x, gamma, beta, _, channels, _, groups, eps = call.args
    grouped = x.reshape(x.shape[0], groups, -1)
    bounds = {id(grouped): call.bounds[id(x)].reshape(grouped.shape)} if id(x) in call.bounds else {}
    inner = Call(func=call.func, args=(grouped,), kwargs={}, bounds=bounds, result=None, unit=call.unit)
    y, e = _normed(inner, grouped, (-1,), float(eps))
    tail = (1, channels, *(1 for _ in range(x.ndim - 2)))
    gamma, beta = (None if v is None else v.reshape(tail) for v in (gamma, beta))
    return [_affine(call, y.reshape(x.shape), e.reshape(x.shape), gamma, beta), None, None]


def chosen(call: Call) -> Any:
    """where(condition, a, b)."""
    condition, a, b = call.args[:3]
    ea, eb = (call.error(v) + torch.zeros_like(call.result) for v in (a, b))
    return torch.where(condition, ea, eb) if call.bounds else None


def copied(call: Call) -> Any:
    """A tensor in another type or layout; float64 throughout."""
    return call.bound(call.args[0])


_MOVES = (
    "view", "_unsafe_view", "reshape", "transpose", "t", "permute", "expand", "unsqueeze", "squeeze", "slice", "select",
    "split", "split_with_sizes", "chunk", "unbind", "cat", "stack", "clone", "contiguous", "detach", "alias", "flatten",
    "constant_pad_nd", "upsample_nearest2d", "_upsample_nearest_exact2d", "repeat", "repeat_interleave", "flip", "roll",
    "index", "index_select", "narrow", "view_as", "expand_as", "movedim", "swapaxes", "unflatten", "embedding",
    "pixel_shuffle", "pixel_unshuffle",
)  # fmt: skip
_AVERAGES = ("mean", "sum", "avg_pool2d", "upsample_bilinear2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d")
_ATTENTIONS = (
    "scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math"
)  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(_MOVES, moved),
    **dict.fromkeys(_AVERAGES, averaged),
    **dict.fromkeys(_ATTENTIONS, attention),
    **dict.fromkeys(("_to_copy", "to", "lift_fresh", "neg", "abs", "relu", "clamp", "lift_fresh_copy"), copied),
    "add": added,
    "sub": added,
    "rsub": subtracted_from,
    "mul": multiplied,
    "div": divided,
    "silu": _smooth(1.1, _of_input),
    "gelu": _smooth(1.13, _of_input),
    "sigmoid": _smooth(0.25, _of_one),
    "tanh": _smooth(1.0, _of_one),
    "erf": _smooth(1.13, _of_one),
    "sin": _smooth(1.0, _of_angle),
    "cos": _smooth(1.0, _of_angle),
    "exp": exponential,
    "sqrt": rooted,
    "rsqrt": rooted,
    "pow": raised,
    "linspace": spaced,
    "mm": matrix,
    "bmm": matrix,
    "matmul": matrix,
    "addmm": matrix_added,
    "baddbmm": matrix_added,
    "linear": linear,
    "convolution": convolved,
    "_softmax": softmax,
    "native_layer_norm": layer_norm,
    "native_group_norm": group_norm,
    "where": chosen,
}
"""By the name of the aten operation; its form in place has the same."""
