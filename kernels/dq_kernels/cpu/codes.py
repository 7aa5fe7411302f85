"""Checks and argument structs of the ops that write codes, from numpy arrays."""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence
from typing import Any

import numpy as np

from dq_kernels.arrays import Array
from dq_kernels.cpu import structs
from dq_kernels.cpu.library import KernelInputError, aligned_empty
from dq_kernels.quantize.reference import Quantizer

MAX_ZERO_POINT = 1 << 22
"""Magnitude up to which q_min - z is a float32 with room for rounding."""


def range_reason(q_min: int, q_max: int) -> str:
    """Why the CPU has no codes for this range; empty where it has."""
    if not 1 <= q_max - q_min <= 255:
        return f"codes span {q_min} to {q_max}, expected 2 to 256 of them in a byte"
    return ""


def float_array(name: str, x: Array, ndim: int = 3) -> int:
    """Pitch of the rows of a float32 [batch, rows, channels] array whose rows may lie apart.

    Raises:
        KernelInputError: another dtype, or a layout that one pitch does not describe.
    """
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim != ndim or not x.flags.aligned:
        found = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise KernelInputError(f"{name} is {found}, expected aligned float32 [batch, rows, channels]")
    batch, rows, channels = x.shape
    stride = x.strides[1] if rows > 1 else x.strides[0] if batch > 1 else 4 * channels
    pitch = stride // 4
    good = stride % 4 == 0 and pitch >= channels and (channels < 2 or x.strides[2] == 4)
    if x.size and (not good or (batch > 1 and x.strides[0] != rows * stride)):
        raise KernelInputError(
            f"{name} has strides {x.strides}, expected channels last and one distance from row to row; copy it"
        )
    return int(pitch)


def vector(name: str, values: Array | None, count: int, kind: Any = np.float32) -> int | None:
    """Address of a contiguous vector, None for None.

    Raises:
        KernelInputError: another dtype or length.
    """
    if values is None:
        return None
    good = isinstance(values, np.ndarray) and values.dtype == kind and values.shape == (count,)
    if not good or not values.flags.c_contiguous or not values.flags.aligned:
        found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise KernelInputError(f"{name} is {found}, expected contiguous {np.dtype(kind).name} [{count}]")
    return int(values.ctypes.data)


def step_vector(step: Array, batch: int, quantizers: Sequence[Quantizer]) -> int | None:
    """Address of the samples' step buckets, each inside the tables.

    Raises:
        KernelInputError: another dtype or length, or a bucket outside of a table.
    """
    address = vector("step", step, batch, np.int32)
    for quantizer in quantizers:
        steps = quantizer.inverse_scale.shape[0]
        if steps > 1 and batch and (step.min() < 0 or step.max() >= steps):
            raise KernelInputError(f"step buckets are {step.min()} to {step.max()}, expected 0 to {steps - 1}")
    return address


def _quantizer_struct(quantizer: Quantizer) -> c.Structure:
    reason = range_reason(quantizer.q_min, quantizer.q_max)
    if reason:
        raise KernelInputError(reason)
    steps = quantizer.inverse_scale.shape[0]
    found = structs.Quantizer()
    found.pre = vector("pre", quantizer.pre, quantizer.channels)
    found.inverse_scale = vector("inverse_scale", quantizer.inverse_scale, steps)
    found.zero_point = vector("zero_point", quantizer.zero_point, steps, np.int32)
    if steps < 1:
        raise KernelInputError("inverse_scale is empty, expected a row for each step, or one for all")
    furthest = int(np.abs(quantizer.zero_point.astype(np.int64)).max())
    if furthest > MAX_ZERO_POINT:
        raise KernelInputError(f"a zero point is {furthest} from 0, expected {MAX_ZERO_POINT} at most")
    found.steps, found.q_min, found.q_max = steps, quantizer.q_min, quantizer.q_max
    return found


def code_output(
    quantizer: Quantizer, batch: int, rows: int, channels: int, pitch_multiple: int
) -> tuple[c.Structure, Array]:
    """Struct of an output and the array its codes go to.

    Args:
        quantizer: of the part; its channels lie inside the tensor.
        batch: of the tensor.
        rows: of the tensor.
        channels: of the tensor.
        pitch_multiple: the codes' rows are as long as the next multiple of it; bytes behind the channels are 0.

    Returns:
        The struct, and uint8 [batch, rows, pitch].

    Raises:
        KernelInputError: tables of wrong type or length, or channels outside of the tensor.
    """
    if quantizer.first < 0 or quantizer.first + quantizer.channels > channels:
        raise KernelInputError(
            f"a part has channels {quantizer.first} to {quantizer.first + quantizer.channels}, "
            f"expected them within the {channels} of the tensor"
        )
    if pitch_multiple < 1:
        raise KernelInputError(f"pitch multiple is {pitch_multiple}, expected 1 or more")
    pitch = -(-quantizer.channels // pitch_multiple) * pitch_multiple
    codes = aligned_empty((batch, rows, pitch), np.uint8)
    found = structs.CodeOutput()
    found.quantizer = _quantizer_struct(quantizer)
    found.codes, found.first = codes.ctypes.data, quantizer.first
    found.channels, found.pitch = quantizer.channels, pitch
    return found, codes


def float_output(y: Array | None, x: Array, shape: tuple[int, ...]) -> tuple[Array, int]:
    """Array that y is written to, and its pitch: the given one, or a new one.

    Raises:
        KernelInputError: y has another shape or dtype, or lies in the memory of x.
    """
    if y is None:
        return aligned_empty(shape, np.float32), shape[2]
    pitch = float_array("y", y)
    if y.shape != shape or not y.flags.writeable:
        raise KernelInputError(f"y is {y.shape}, expected a writeable array of {shape}")
    if np.may_share_memory(x, y):
        raise KernelInputError("y lies in the memory of x, expected another array: x is read after y is written")
    return y, pitch
