"""Products of matrices, convolutions of every rank, and attention with masks."""

from __future__ import annotations

from typing import Any

import numpy as np

from dq_deploy.native.cpu.numpy_ops.made import Made, Result, Table, wide
from dq_deploy.numerics.arrays import Array

SCORES = 1 << 22
"""Scores of attention that are held at once."""


def _lined(x: Array) -> Array:
    """Copied where its rows or columns are not adjacent: numpy multiplies such an array slowly."""
    if x.ndim < 2 or x.itemsize in x.strides[-2:]:
        return x
    return np.ascontiguousarray(x)


def matmul(a: Array, b: Array) -> Array:
    """Product over the last axis of `a` and the second last of `b`."""
    return np.asarray(np.matmul(_lined(wide(a)), _lined(wide(b))))


def _mm(made: Made, a: Array, b: Array) -> Array:
    return matmul(a, b)


def _addmm(made: Made, bias: Array, a: Array, b: Array, *, beta: float = 1, alpha: float = 1) -> Array:
    product = matmul(a, b)
    if alpha != 1:
        product = product * alpha
    return product if beta == 0 else product + (wide(bias) if beta == 1 else wide(bias) * beta)


def _attention(
    made: Made,
    query: Array,
    key: Array,
    value: Array,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Array | None = None,
    scale: float | None = None,
) -> Result:
    """softmax(scale * q k^T + mask) v, some rows of one head at a time; the sums of exponentials are not given."""
    if dropout_p:
        raise ValueError(f"dropout is {dropout_p}, expected 0")
    batch, heads, rows, dim = query.shape
    factor = dim**-0.5 if scale is None else scale
    out = np.empty((batch, heads, rows, value.shape[-1]), query.dtype)
    mask = None if attn_mask is None else np.broadcast_to(attn_mask, (batch, heads, rows, key.shape[2]))
    step = max(1, SCORES // max(key.shape[2], 1))
    shared = heads // key.shape[1]  # heads of q that read one of k
    for b, h in np.ndindex(batch, heads):
        k, v = _lined(wide(key[b, h // shared])), _lined(wide(value[b, h // shared]))
        for first in range(0, rows, step):
            block = slice(first, min(first + step, rows))
            scores = matmul(query[b, h, block], k.T)
            scores *= scores.dtype.type(factor)
            if mask is not None:
                own = mask[b, h, block]
                scores = np.where(own, scores, -np.inf) if mask.dtype == bool else scores + own
            if is_causal:
                ahead = np.arange(key.shape[2])[None, :] > np.arange(block.start, block.stop)[:, None]
                scores = np.where(ahead, -np.inf, scores)
            out[b, h, block] = _weighted(scores, v)
    return (out,)


def _weighted(scores: Array, v: Array) -> Array:
    """softmax(scores) v, the sum divided by at the end; rows of minus infinity are 0."""
    top = scores.max(-1, keepdims=True)
    scores = scores - np.where(np.isneginf(top), 0, top).astype(scores.dtype)
    np.exp(scores, out=scores)
    total = scores.sum(-1, keepdims=True)
    return np.asarray(matmul(scores, v) / np.where(total == 0, 1, total))


def softmax(x: Array, dim: int) -> Array:
    """exp(x) over its sum along an axis; rows of minus infinity are 0, as torch's attention has them."""
    x = wide(x)
    top = np.max(x, axis=dim, keepdims=True)
    shifted = np.exp(x - np.where(np.isneginf(top), 0, top).astype(x.dtype))
    total = np.sum(shifted, axis=dim, keepdims=True, dtype=np.float64)
    return np.asarray(shifted / np.where(total == 0, 1, total).astype(x.dtype))


def _several(values: list[int], rank: int) -> list[int]:
    return list(values) * rank if len(values) == 1 else list(values)


def windows(x: Array, kernel: list[int], stride: list[int], dilation: list[int]) -> Array:
    """[B, C, *out, *kernel] of [B, C, *size], nothing around it."""
    rank = len(kernel)
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    seen = np.lib.stride_tricks.sliding_window_view(x, reach, tuple(range(x.ndim - rank, x.ndim)))
    key: list[Any] = [..., *(slice(None, None, s) for s in stride), *(slice(None, None, d) for d in dilation)]
    return np.asarray(seen[tuple(key)])


def _spread(x: Array, stride: list[int]) -> Array:
    """Zeros between the pixels."""
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
    y = np.zeros((*x.shape[:2], *sizes), x.dtype)
    y[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = x
    return y


def _around(x: Array, widths: list[tuple[int, int]]) -> Array:
    cut = tuple(slice(max(-low, 0), n - max(-high, 0)) for n, (low, high) in zip(x.shape[2:], widths, strict=True))
    kept = x[(slice(None), slice(None), *cut)]
    return np.pad(kept, [(0, 0), (0, 0), *((max(low, 0), max(high, 0)) for low, high in widths)])


def _convolution(
    made: Made,
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Array:
    rank = weight.ndim - 2
    stride, padding, dilation = (_several(v, rank) for v in (stride, padding, dilation))
    if x.ndim == rank + 1:
        x, single = x[None], True
    else:
        single = False
    x, weight = wide(x), wide(weight)
    if transposed:
        more = _several(output_padding, rank)
        reach = [(k - 1) * d - p for k, d, p in zip(weight.shape[2:], dilation, padding, strict=True)]
        x = _around(_spread(x, stride), [(r, r + m) for r, m in zip(reach, more, strict=True)])
        split = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
        weight = np.flip(split.reshape(-1, *split.shape[2:]), tuple(range(2, 2 + rank)))
        stride = [1] * rank
    else:
        x = _around(x, [(p, p) for p in padding])
    y = _correlated(x, weight, stride, dilation, groups)
    if bias is not None:
        y = y + wide(bias).reshape(-1, *(1,) * rank)
    return np.asarray(y[0] if single else y)


def _correlated(x: Array, weight: Array, stride: list[int], dilation: list[int], groups: int) -> Array:
    rank, pieces = weight.ndim - 2, []
    axes = [1, *range(2 + rank, 2 + 2 * rank)]
    for inputs, own in zip(np.split(x, groups, 1), np.split(weight, groups, 0), strict=True):
        seen = windows(inputs, list(weight.shape[2:]), stride, dilation)
        pieces.append(np.tensordot(seen, own, axes=(axes, [1, *range(2, 2 + rank)])))
    return np.moveaxis(np.concatenate(pieces, -1), -1, 1)


OPS: Table = {
    "mm": _mm,
    "bmm": _mm,
    "mv": _mm,
    "dot": _mm,
    "matmul": _mm,
    "addmm": _addmm,
    "baddbmm": _addmm,
    "addmv": _addmm,
    "convolution": _convolution,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_softmax": lambda made, x, dim, half_to_float=False: softmax(x, dim),
}
