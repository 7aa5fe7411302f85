# ruff: noqa: D102 (the protocols name what Part and Layer document)
"""The integer layer: codes, canonical accumulators and the float output.

For input channel k, output channel n and the step bucket t of a sample::

    m[k] = pre[k] * inv_s[t]                                float32
    c[k] = clamp(rne(x[k] * m[k]), q_min - z[t], q_max - z[t])
    A[n] = sum_k c[k] * w_q[n, k]                           int32, canonical accumulator
    y[n] = A[n] * (s[t] * s_w[n]) + b[n]                    float32

Slow and obvious is preferred to fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dq_deploy.errors import InputError, RecordError
from dq_deploy.numerics.arrays import F32, I32
from dq_deploy.numerics.geometry import Window, padded

ACCUMULATOR_LIMIT = 2**31
"""Invariant of every layer: K * max|c| * max|w_q| stays below this."""

FLOAT32_EXACT = 2**24
"""Integers of smaller magnitude are exact in float32."""


class PartLike(Protocol):
    """What the numerics need of one input-channel slice (see `dq_deploy.record.Part`)."""

    @property
    def pre(self) -> F32: ...
    @property
    def scale(self) -> F32: ...
    @property
    def zero_point(self) -> I32: ...
    @property
    def weight_scale(self) -> F32: ...
    @property
    def group_of_step(self) -> I32: ...
    def q_weight(self, group: int) -> NDArray[np.int16] | NDArray[np.int32]: ...


class LayerLike(Protocol):
    """What the numerics need of a layer (see `dq_deploy.record.Layer`)."""

    @property
    def kind(self) -> str: ...
    @property
    def window(self) -> Window: ...
    @property
    def groups(self) -> int: ...
    @property
    def q_min(self) -> int: ...
    @property
    def q_max(self) -> int: ...
    @property
    def parts(self) -> Sequence[PartLike]: ...
    @property
    def bias(self) -> F32 | None: ...


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """What the integer layer computes for one input.

    Attributes:
        codes: per part, centred codes c, int32, shape of the part's input.
        accumulators: per part, canonical accumulators A, int32, shape of the output.
        output: y, float32.
    """

    codes: tuple[I32, ...]
    accumulators: tuple[I32, ...]
    output: F32


def rne(x: NDArray[Any]) -> NDArray[Any]:
    """Round half to even, staying in the floating type of x."""
    rounded: NDArray[Any] = np.rint(x)
    return rounded


def reciprocal(scale: F32) -> F32:
    """float32 reciprocal of a float32 scale: inv_s of the integer layer."""
    return (np.float32(1.0) / np.asarray(scale, np.float32)).astype(np.float32)


def step_bucket(timestep: NDArray[Any], edges: F32) -> NDArray[np.int64]:
    """Bucket of each timestep: count(edges <= float32(timestep)).

    Args:
        timestep: [B], any number type; compared as float32.
        edges: [T-1] float32, strictly increasing.

    Returns:
        [B] int64 in 0..T-1.

    Raises:
        InputError: a timestep is NaN; it belongs to no bucket.
    """
    value = np.asarray(timestep).astype(np.float32).reshape(-1, 1)
    if np.isnan(value).any():
        raise InputError("timestep holds NaN, expected numbers; a NaN belongs to no step bucket")
    buckets: NDArray[np.int64] = (np.asarray(edges, np.float32).reshape(1, -1) <= value).sum(1, dtype=np.int64)
    return buckets


def table_at(table: NDArray[Any], step: NDArray[np.integer]) -> NDArray[Any]:
    """Rows of a [T, ...] or static [1, ...] table for each sample's bucket.

    Raises:
        InputError: a bucket outside the table.
    """
    if table.shape[0] == 1:
        return np.repeat(table, len(step), axis=0)
    step = np.asarray(step)
    if step.size and (step.min() < 0 or step.max() >= table.shape[0]):
        raise InputError(f"step buckets span [{step.min()}, {step.max()}], expected 0..{table.shape[0] - 1}")
    rows: NDArray[Any] = table[step]
    return rows


def row_steps(step: NDArray[np.integer], rows: int, *, static: bool = False) -> NDArray[np.integer]:
    """Bucket of each entry along the leading axis of what a layer reads.

    A model may fold other axes into the batch: frames, resolutions, the tokens of a text. Entry i then belongs to
    sample i // k, where k = rows / B. An axis that is no multiple of B holds no samples: all of them share what is
    computed there, which only a layer without step tables can be part of.

    Args:
        step: [B] bucket of each sample.
        rows: entries of the leading axis.
        static: the layer has no step tables, so that every bucket is alike.

    Returns:
        [rows].

    Raises:
        InputError: step tables, and entries that are not those of whole samples.
    """
    step = np.asarray(step)
    if len(step) == rows:
        return step
    if len(step) and rows and rows % len(step) == 0:
        return np.repeat(step, rows // len(step))
    if not static:
        raise InputError(
            f"leading axis has {rows} entries, expected a multiple of the {len(step)} samples: this layer's tables "
            "differ by step"
        )
    return np.zeros(rows, np.int64)


def is_static(layer: LayerLike) -> bool:
    """Whether none of a layer's tables differs by step."""
    tables = [(part.scale, part.zero_point, part.group_of_step) for part in layer.parts]
    alike = all(len(table) == 1 for own in tables for table in own)
    return alike and (layer.bias is None or layer.bias.ndim == 1 or len(layer.bias) == 1)


def per_sample(values: NDArray[Any], ndim: int) -> NDArray[Any]:
    """[B] values with axes of one behind them, to broadcast over a tensor of ndim axes."""
    return values.reshape((-1,) + (1,) * (ndim - 1))


def per_channel(values: NDArray[Any], ndim: int, axis: int) -> NDArray[Any]:
    """[C] values shaped to broadcast along one axis of a tensor of ndim axes."""
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)


def quantize_centred(
    x: F32,
    *,
    pre: F32,
    scale: F32,
    zero_point: I32,
    q_min: int,
    q_max: int,
    step: NDArray[np.integer],
    channel_axis: int = 1,
) -> I32:
    """Centred codes c of a float tensor.

    Args:
        x: [B, ...] float32, channels on `channel_axis`.
        pre: [C] float32.
        scale: [T] or [1] float32.
        zero_point: [T] or [1] int32.
        q_min: lowest code, before centring.
        q_max: highest code, before centring.
        step: [B] bucket of each sample.
        channel_axis: axis of the input channels.

    Returns:
        int32, shape of x.

    Raises:
        InputError: x holds NaN (a NaN has no code), or another number of samples or channels than the tables.
    """
    x = np.asarray(x)
    if x.dtype != np.float32:
        raise InputError(f"activation is {x.dtype}, expected float32; convert it before quantizing")
    if np.isnan(x).any():
        raise InputError("activation holds NaN, expected finite numbers; a NaN has no code")
    if len(step) != x.shape[0] or len(pre) != x.shape[channel_axis]:
        raise InputError(
            f"activation has shape {x.shape}, expected {len(step)} samples (one step each) "
            f"and {len(pre)} channels on axis {channel_axis}"
        )
    z = per_sample(table_at(np.asarray(zero_point), step), x.ndim).astype(np.float32)
    inv = table_at(reciprocal(scale), step)
    # one float32 product per sample and channel, as the engines do it
    m = (inv[:, None] * np.asarray(pre, np.float32)[None, :]).astype(np.float32)
    shape = [x.shape[0]] + [1] * (x.ndim - 1)
    shape[channel_axis] = m.shape[1]
    with np.errstate(over="ignore"):
        scaled = (x * m.reshape(shape)).astype(np.float32)
    low = (np.float32(q_min) - z).astype(np.float32)
    high = (np.float32(q_max) - z).astype(np.float32)
    codes: I32 = np.clip(rne(scaled), low, high).astype(np.int32)
    return codes


def _exact_float(bound: int) -> type[np.floating]:
    return np.float32 if bound < FLOAT32_EXACT else np.float64


def _magnitude(values: NDArray[Any]) -> int:
    return int(np.abs(values.astype(np.int64)).max(initial=0))


def _matmul_exact(a: NDArray[Any], b: NDArray[Any]) -> I32:
    """Integer a @ b through a float product that is exact for these magnitudes."""
    bound = a.shape[-1] * _magnitude(a) * _magnitude(b)
    if bound >= ACCUMULATOR_LIMIT:
        raise RecordError(
            f"accumulator bound {bound} reaches 2^31; expected K * max|c| * max|w_q| below it: use fewer bits"
        )
    kind = _exact_float(bound)
    product: I32 = np.matmul(a.astype(kind), b.astype(kind)).astype(np.int32)
    return product


def accumulate_linear(codes: I32, q_weight: NDArray[np.integer]) -> I32:
    """A = codes @ q_weight.T, exact.

    Args:
        codes: [..., C_in] integers.
        q_weight: [C_out, C_in] integers.

    Returns:
        [..., C_out] int32.
    """
    return _matmul_exact(codes, np.ascontiguousarray(q_weight.T))


def im2col(x: NDArray[Any], window: Window) -> NDArray[Any]:
    """Patches of x as a view: [B, C, H_out, W_out, kh, kw], zeros outside.

    Raises:
        InputError: x with its padding is smaller than the window.
    """
    x = padded(x, window.padding)
    span, stride, dilation = window.span, window.stride, window.dilation
    if x.shape[2] < span[0] or x.shape[3] < span[1]:
        raise InputError(f"padded input {x.shape[2:]} is smaller than the kernel's span {span}; expected at least that")
    windows = np.lib.stride_tricks.sliding_window_view(x, span, axis=(2, 3))
    return windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def accumulate_conv2d(
    codes: I32,
    q_weight: NDArray[np.integer],
    window: Window,
    *,
    groups: int = 1,
) -> I32:
    """Convolution of centred codes, exact; padding contributes the code 0.

    Args:
        codes: [B, C_in, H, W] integers.
        q_weight: [C_out, C_in / groups, kh, kw] integers.
        window: how it moves; its kernel is that of the weights.
        groups: number of channel groups.

    Returns:
        [B, C_out, H_out, W_out] int32.

    Raises:
        InputError: channels or a kernel that do not fit the weights, or an input smaller than the kernel.
    """
    n_out, c_group, kh, kw = q_weight.shape
    if codes.shape[1] != c_group * groups or n_out % groups:
        raise InputError(
            f"codes have {codes.shape[1]} channels and weights {n_out} outputs, expected {c_group * groups} "
            f"channels and a multiple of {groups} outputs"
        )
    if window.kernel != (kh, kw):
        raise InputError(f"window has the kernel {window.kernel}, expected that of the weights, {(kh, kw)}")
    per_group = n_out // groups
    outputs = []
    for g in range(groups):
        part = codes[:, g * c_group : (g + 1) * c_group]
        patches = im2col(part, window)
        b, _, h, w = patches.shape[:4]
        columns = patches.transpose(0, 2, 3, 1, 4, 5).reshape(b, h * w, c_group * kh * kw)
        rows = q_weight[g * per_group : (g + 1) * per_group].reshape(per_group, -1)
        product = _matmul_exact(columns, np.ascontiguousarray(rows.T))
        outputs.append(product.transpose(0, 2, 1).reshape(b, per_group, h, w))
    return np.concatenate(outputs, axis=1)


def channel_axis_of(kind: str, ndim: int) -> int:
    """Axis of the input channels: the last for a linear layer, 1 for a convolution."""
    return ndim - 1 if kind == "linear" else 1


def _accumulate(layer: LayerLike, codes: I32, q_weight: NDArray[np.integer]) -> I32:
    if layer.kind == "linear":
        return accumulate_linear(codes, q_weight)
    return accumulate_conv2d(codes, q_weight, layer.window, groups=layer.groups)


def _accumulate_by_group(layer: LayerLike, part: PartLike, codes: I32, step: NDArray[np.integer]) -> I32:
    """Each sample with the weight set of its step."""
    group = table_at(part.group_of_step, step)
    result: I32 | None = None
    for g in np.unique(group):
        chosen = group == g
        product = _accumulate(layer, codes[chosen], part.q_weight(int(g)))
        if result is None:
            result = np.zeros((len(group), *product.shape[1:]), np.int32)
        result[chosen] = product
    if result is None:
        raise InputError("batch is empty, expected at least one sample")
    return result


def rescale(accumulator: I32, *, scale: F32, weight_scale: F32, step: NDArray[np.integer], channel_axis: int) -> F32:
    """A * (s[t] * s_w[n]) in float32.

    Args:
        accumulator: [B, ...] int32, output channels on `channel_axis`.
        scale: [T] or [1] float32.
        weight_scale: [B, C_out] float32, the weight set of each sample.
        step: [B] bucket of each sample.
        channel_axis: axis of the output channels.
    """
    factor = (table_at(scale, step)[:, None] * weight_scale).astype(np.float32)
    shape = [accumulator.shape[0]] + [1] * (accumulator.ndim - 1)
    shape[channel_axis] = factor.shape[1]
    return (accumulator.astype(np.float32) * factor.reshape(shape)).astype(np.float32)


def bias_of_samples(bias: F32, ndim: int, axis: int, step: NDArray[np.integer]) -> NDArray[Any]:
    """A bias [C_out], or of each sample's step [T, C_out], to be added to a tensor of ndim axes."""
    if bias.ndim == 1:
        return per_channel(bias, ndim, axis)
    shape = [len(step)] + [1] * (ndim - 1)
    shape[axis] = bias.shape[1]
    return table_at(bias, step).reshape(shape)


def integer_layer(layer: LayerLike, x: F32, step: NDArray[np.integer]) -> LayerResult:
    """Run one integer layer: codes, canonical accumulators and the float output.

    Args:
        layer: linear or conv2d.
        x: float32, [B, C_in, H, W] for conv2d, [B, ..., C_in] for linear; the leading axis may hold several entries
            a sample, or none, as `row_steps` has it.
        step: [B] bucket of each sample.

    Raises:
        InputError: wrong channel count, NaN, or a leading axis that step tables cannot be looked up for.
    """
    step = row_steps(step, x.shape[0], static=is_static(layer))
    axis = channel_axis_of(layer.kind, x.ndim)
    widths = [len(p.pre) for p in layer.parts]
    if x.shape[axis] != sum(widths):
        raise InputError(f"input has {x.shape[axis]} channels on axis {axis}, expected {sum(widths)}: {x.shape}")
    slices = np.split(x, np.cumsum(widths)[:-1], axis=axis)
    codes, accumulators = [], []
    y: F32 | None = None
    for part, piece in zip(layer.parts, slices, strict=True):
        c = quantize_centred(
            piece,
            pre=part.pre,
            scale=part.scale,
            zero_point=part.zero_point,
            q_min=layer.q_min,
            q_max=layer.q_max,
            step=step,
            channel_axis=axis,
        )
        a = _accumulate_by_group(layer, part, c, step)
        out_axis = channel_axis_of(layer.kind, a.ndim)
        weight_scale = part.weight_scale[table_at(part.group_of_step, step)]
        term = rescale(a, scale=part.scale, weight_scale=weight_scale, step=step, channel_axis=out_axis)
        y = term if y is None else (y + term).astype(np.float32)
        codes.append(c)
        accumulators.append(a)
    assert y is not None
    if layer.bias is not None:
        y = (y + bias_of_samples(layer.bias, y.ndim, channel_axis_of(layer.kind, y.ndim), step)).astype(np.float32)
    return LayerResult(codes=tuple(codes), accumulators=tuple(accumulators), output=y)
