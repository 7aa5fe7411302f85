"""What int_linear and int_conv2d share in front of the CPU kernel: checks of arrays, and their argument structs."""

from __future__ import annotations

from ctypes import Structure
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_kernels.cpu import structs
from dq_kernels.cpu.library import Context, KernelInputError


def unsupported(
    weights: NDArray[Any],
    *,
    q_min: int,
    q_max: int,
    zero_point: Any,
    padded: bool = False,
    groups: int = 1,
    weight_zero: NDArray[np.int32] | None = None,
) -> str:
    """Why the kernel cannot take this layer, "" where it can.

    Args:
        weights: integers [out_channels, ..., channels]; w_q, less weight_zero where that is given.
        q_min: smallest activation code.
        q_max: largest activation code.
        zero_point: of each step.
        padded: whether a window may leave the image, so that zero codes are stored.
        groups: of the convolution.
        weight_zero: int32 [out_channels], taken from each weight; None for zeros.
    """
    if groups != 1:
        return f"the convolution has {groups} groups, the kernel takes 1"
    if not 1 <= q_max - q_min <= 255:
        return f"activation codes are {q_min}..{q_max}, the kernel takes at most 8 bits"
    low, high = (int(weights.min()), int(weights.max())) if weights.size else (0, 0)
    if low < -128 or high > 127:
        return f"weights are {low}..{high}, the kernel takes -128..127"
    zero_code = np.asarray(zero_point, np.int64) - q_min
    if padded and (zero_code.min() < 0 or zero_code.max() > 255):
        return f"zero codes are {zero_code.min()}..{zero_code.max()}, padding takes 0..255"
    if weight_zero is not None and weights.size:
        rows = weights.reshape(len(weights), -1)
        zero = weight_zero.astype(np.int64)
        low, high = int((rows.min(axis=1) - zero).min()), int((rows.max(axis=1) - zero).max())
    length = weights[0].size if len(weights) else 0
    largest = int(max(np.abs(zero_code).max(), np.abs(q_max - q_min - zero_code).max()))
    if length * largest * max(-low, high) >= 2**31:
        return f"sums of {length} products of {largest} and {max(-low, high)} leave int32"
    return ""


def code_span(*, q_min: int, q_max: int, zero_point: Any, padded: bool = False) -> int:
    """Largest stored code that the kernel may meet: what weights are packed for."""
    zero_code = int(np.max(np.asarray(zero_point, np.int64))) - q_min
    return max(q_max - q_min, zero_code) if padded else q_max - q_min


def check(name: str, array: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    """Refuse an array of another dtype or shape, or one that is not contiguous.

    Raises:
        KernelInputError: it is.
    """
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        contiguous = "" if array.flags.c_contiguous else " (not contiguous)"
        raise KernelInputError(
            f"{name} is {array.dtype} {array.shape}{contiguous}, expected contiguous {np.dtype(dtype)} {shape}"
        )


def quantizer(
    *, scale: NDArray[np.float32], zero_point: NDArray[np.int32], q_min: int, q_max: int, step: NDArray[np.int32]
) -> Structure:
    """The quantizer's struct; it points into the arrays.

    Raises:
        KernelInputError: another dtype or shape, or a step that the tables do not have.
    """
    steps = len(scale)
    check("scale", scale, np.float32, (steps,))
    check("zero_point", zero_point, np.int32, (steps,))
    check("step", step, np.int32, (len(step),))
    if steps < 1 or (steps > 1 and step.size and not (step.min() >= 0 and step.max() < steps)):
        raise KernelInputError(f"steps are {step.tolist()}, expected 0..{steps - 1}: the tables have {steps} rows")
    return structs.Quantizer(
        scale=scale.ctypes.data, zero_point=zero_point.ctypes.data, steps=steps, q_min=q_min, q_max=q_max
    )


def epilogue(
    shape: tuple[int, ...], weight_scale: NDArray[np.float32], extras: dict[str, NDArray[np.float32] | None], steps: int
) -> tuple[Structure, NDArray[np.float32], NDArray[np.int32]]:
    """The epilogue's struct, and the two results of `shape` it points to; last axis is out_channels.

    A bias of two axes has a row for each of the quantizer's steps.

    Raises:
        KernelInputError: an array has another dtype or shape.
    """
    out_channels = shape[-1]
    check("weight_scale", weight_scale, np.float32, (out_channels,))
    shapes = {"bias": (out_channels,), "row": (shape[0], out_channels), "residual": shape, "previous": shape}
    y, accumulators = np.empty(shape, np.float32), np.empty(shape, np.int32)
    result = structs.Epilogue(weight_scale=weight_scale.ctypes.data, y=y.ctypes.data)
    result.accumulators = accumulators.ctypes.data
    bias = extras.get("bias")
    if bias is not None and bias.ndim == 2:
        shapes["bias"], result.bias_pitch = (steps, out_channels), out_channels
    result.row_pitch = result.residual_pitch = result.y_pitch = out_channels
    for name, expected in shapes.items():
        array = extras.get(name)
        if array is not None and name == "previous":
            check(name, array, np.float32, expected)
            np.copyto(y, array)
            result.previous = y.ctypes.data
        elif array is not None:
            check(name, array, np.float32, expected)
            setattr(result, name, array.ctypes.data)
    return result, y, accumulators


def codes_of_pitch(codes: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Codes whose pixels lie a multiple of 4 bytes apart, themselves where they do already.

    Raises:
        KernelInputError: another dtype, or fewer channels than the weights have.
    """
    if codes.dtype != np.uint8 or codes.shape[-1] < channels:
        raise KernelInputError(f"codes are {codes.dtype} {codes.shape}, expected uint8 [..., {channels} or more]")
    missing = -codes.shape[-1] % 4
    if missing:
        return np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)])
    return np.ascontiguousarray(codes)


def linear(
    context: Context,
    codes: NDArray[np.uint8],
    weights: NDArray[np.int8],
    *,
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int32],
    q_min: int,
    q_max: int,
    step: NDArray[np.int32],
    weight_scale: NDArray[np.float32],
    weight_zero: NDArray[np.int32] | None,
    extras: dict[str, NDArray[np.float32] | None],
    packed: NDArray[np.uint8] | None = None,
) -> tuple[Structure, NDArray[np.float32], NDArray[np.int32], tuple[Any, ...]]:
    """A linear layer's struct, the y and accumulators it points to, and what has to live as long; see `int_linear.run`.

    Raises:
        KernelInputError: an array has another dtype or shape, or no kernel takes the layer.
    """
    if codes.ndim != 3 or weights.ndim != 2:
        raise KernelInputError(f"codes are {codes.shape} and weights {weights.shape}, expected 3 and 2 axes")
    reason = unsupported(weights, q_min=q_min, q_max=q_max, zero_point=zero_point, weight_zero=weight_zero)
    if reason:
        raise KernelInputError(f"{reason}: use the reference, or another engine, for this layer")
    (batch, rows, _), (out_channels, channels) = codes.shape, weights.shape
    check("step", step, np.int32, (batch,))
    codes = codes_of_pitch(codes, channels)
    if packed is None:
        packed = context.pack(weights[:, None, :], q_max - q_min, weight_zero)
    added, y, accumulators = epilogue((batch, rows, out_channels), weight_scale, extras, len(scale))
    args = structs.IntLinearArgs(
        codes=codes.ctypes.data,
        weights=packed.ctypes.data,
        step=step.ctypes.data,
        batch=batch,
        rows=rows,
        channels=channels,
        code_pitch=codes.shape[-1],
        out_channels=out_channels,
        quantizer=quantizer(scale=scale, zero_point=zero_point, q_min=q_min, q_max=q_max, step=step),
        epilogue=added,
    )
    return args, y, accumulators, (codes, packed)
