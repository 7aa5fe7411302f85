"""A kernel launch as a value: what the launchers start, what the compiler compiles, what names a compiled file.

Imports neither torch nor triton. Arrays are anything with a shape, a dtype and an address.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dq_kernels.cpu.library import KernelInputError

KERNELS = {
    "quantize_kernel": "dq_kernels.quantize.triton_kernel",
    "clear_kernel": "dq_kernels.group_norm_silu_quantize.triton_kernel",
    "statistics_kernel": "dq_kernels.group_norm_silu_quantize.triton_kernel",
    "group_norm_silu_quantize_kernel": "dq_kernels.group_norm_silu_quantize.triton_kernel",
    "layer_norm_quantize_kernel": "dq_kernels.layer_norm_quantize.triton_kernel",
    "geglu_quantize_kernel": "dq_kernels.geglu_quantize.triton_kernel",
    "int_linear_kernel": "dq_kernels.int_linear.triton_kernel",
    "int_conv2d_kernel": "dq_kernels.int_conv2d.triton_kernel",
    "finish_split_kernel": "dq_kernels.gpu.device.product_blocks",
}
"""Module of each kernel."""

POINTERS = {
    "int8": "*i8",
    "int32": "*i32",
    "int64": "*i64",
    "float16": "*fp16",
    "bfloat16": "*bf16",
    "float32": "*fp32",
}
"""Triton's word for a pointer to each type the kernels take."""

FLOATS = ("float16", "bfloat16", "float32")
MAX_INDEX = (1 << 31) - 1
"""Elements are counted in int32 inside the kernels."""
ALIGNED = ("pitch", "first", "channels")
"""Integer arguments that addresses are made of: it is worth knowing that 16 divides them."""
WIDE = ("eps_bits",)
"""Integer arguments of 64 bits."""


@dataclass(frozen=True)
class Blank:
    """An array that is not there yet: shape and type, of a workspace, or of anything for the compiler.

    Attributes:
        shape: of the array.
        dtype: its name, one of `POINTERS`.
    """

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class KernelCall:
    """One launch.

    Attributes:
        kernel: a name of `KERNELS`.
        grid: programs along three axes.
        arguments: by name: arrays, integers, or None for an array that is not used.
        constants: what is fixed when the kernel is compiled.
        warps: of a program.
        stages: of the software pipeline.
    """

    kernel: str
    grid: tuple[int, int, int]
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    warps: int
    stages: int


def dtype_name(array: Any) -> str:
    """float16 and so on, of an array of torch, numpy or this module."""
    return str(array.dtype).removeprefix("torch.")


def size_of(array: Any) -> int:
    """Elements of an array."""
    count = 1
    for length in array.shape:
        count *= int(length)
    return count


def argument_types(call: KernelCall) -> dict[str, str]:
    """Type of each argument as the compiler sees it.

    `*i8` is a pointer aligned to 16 bytes, `i32` an integer, `i32:16` one that 16 divides, `i64` a wide one, `none`
    an array that is not used.
    """
    types: dict[str, str] = {}
    for name, value in call.arguments.items():
        if value is None:
            types[name] = "none"
        elif name in WIDE:
            types[name] = "i64"
        elif isinstance(value, int):
            types[name] = "i32:16" if value % 16 == 0 and any(word in name for word in ALIGNED) else "i32"
        else:
            types[name] = POINTERS[dtype_name(value)]
    return types


def key_of(call: KernelCall, architecture: int) -> str:
    """Name of the compiled form of a call: 16 hexadecimal digits over all that the machine code depends on."""
    content = {
        "kernel": call.kernel,
        "types": dict(sorted(argument_types(call).items())),
        "constants": dict(sorted(call.constants.items())),
        "warps": call.warps,
        "stages": call.stages,
        "architecture": architecture,
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def check_array(name: str, array: Any, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    """Refuse an array of another type or shape, or with more elements than int32 counts.

    Raises:
        KernelInputError: it is one.
    """
    found = tuple(int(length) for length in array.shape)
    if dtype_name(array) not in dtypes or found != shape:
        wanted = f"{' or '.join(dtypes)} {list(shape)}"
        raise KernelInputError(f"{name} is {dtype_name(array)} {list(found)}, expected {wanted}; convert it before")
    if size_of(array) > MAX_INDEX:
        raise KernelInputError(f"{name} has {size_of(array)} elements, at most {MAX_INDEX} fit; split the batch")
    contiguous = getattr(array, "is_contiguous", None)
    if contiguous is not None and not contiguous():
        raise KernelInputError(f"{name} is not contiguous, expected dense memory with channels last; copy it before")
