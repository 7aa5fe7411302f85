"""What the kernels need of a record, once for all batch sizes: packed weights, tables, float parameters."""

from __future__ import annotations

import ctypes as c
from collections.abc import Mapping
from typing import Any

import numpy as np
from dq_kernels.cpu.library import Context, ProductForm, aligned_empty, packed_form, product_form
from dq_kernels.cpu.structs import Quantizer
from numpy.typing import NDArray

from dq_deploy.errors import DqError
from dq_deploy.native.program.constants import array_of
from dq_deploy.native.program.program import Program, View
from dq_deploy.native.program.views import stored_strides
from dq_deploy.numerics import reciprocal
from dq_deploy.record import Layer, Record

_ALIGNMENT = 64
"""Of parameters, as `aligned_empty` gives it."""


class LayerConstants:
    """Weights and tables of one part of an integer layer.

    Attributes:
        reason: why no kernel takes it, or an empty string.
        packed: weights in the kernels' order; None where there is a reason.
        form: how the product is done, in words.
        product: the same as values; None where there is a reason.
    """

    def __init__(
        self, layer: Layer, part: int, context: Context, *, padded: bool, packed: NDArray[np.uint8] | None = None
    ) -> None:
        """Pack one part.

        Args:
            layer: of the record.
            part: index of the part.
            context: whose instruction set decides the order.
            padded: whether pixels outside the image are read.
            packed: its weights, packed for that instruction set already; they are not copied.
        """
        self.layer, self.index = layer, part
        own = layer.parts[part]
        self.pre = np.array(own.pre, np.float32)
        self.scale, self.zero_point = product_tables(layer, part)
        self.inverse = np.ascontiguousarray(reciprocal(self.scale), np.float32)
        self.weight_scale = np.array(own.weight_scale[0], np.float32)
        self.bias = None if layer.bias is None else np.array(layer.bias, np.float32)
        self.packed: NDArray[np.uint8] | None = None
        self.product: ProductForm | None = None
        self.reason = refusal(layer, part, padded=padded)
        self.form = f"numpy reference: {self.reason}"
        if not self.reason:
            self.packed = self._pack(context) if packed is None else packed
            self.form = packed_form(self.packed)
            self.product = product_form(self.packed)

    def _pack(self, context: Context) -> NDArray[np.uint8]:
        weights, zero = kernel_weights(self.layer, self.index)
        return context.pack(np.ascontiguousarray(weights), self.layer.reach, zero)

    def quantizer(self) -> Any:
        """The struct the kernels read; the arrays belong to this object."""
        steps = len(self.scale)
        pointers = (a.ctypes.data for a in (self.pre, self.inverse, self.scale, self.zero_point))
        return Quantizer(*pointers, steps, self.layer.q_min, self.layer.q_max, 0)


def product_tables(layer: Layer, part: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Activation scale and zero point of a part, [T] or [1]; [T] too where only the bias differs by step."""
    own = layer.parts[part]
    rows = len(own.scale) if layer.bias is None or layer.bias.ndim == 1 else len(layer.bias)
    return (
        np.array(np.broadcast_to(own.scale, (rows,)), np.float32),
        np.array(np.broadcast_to(own.zero_point, (rows,)), np.int32),
    )


def kernel_weights(layer: Layer, part: int) -> tuple[NDArray[np.int8], NDArray[np.int32] | None]:
    """Weights of one part as int8 [C_out, kh * kw, C_in]: w_q, or its codes and their zero points [C_out]."""
    own = layer.parts[part]
    zero = None if own.fits_int8 else np.ascontiguousarray(own.w_zero_point[0])
    q = own.w_code[0] if zero is not None else own.q_weight(0).astype(np.int8)
    if q.ndim == 2:
        return q[:, None, :], zero
    return q.transpose(0, 2, 3, 1).reshape(q.shape[0], -1, q.shape[1]), zero


def refusal(layer: Layer, part: int, *, padded: bool) -> str:
    """Why no kernel can take a part, in words, or an empty string."""
    own = layer.parts[part]
    if layer.groups > 1:
        return f"{layer.groups} channel groups, kernels take 1"
    if own.w_shape[0] > 1:
        return f"{own.w_shape[0]} weight sets that differ by step, kernels take 1"
    if layer.reach > 255:
        return f"activation codes span {layer.reach}, kernels take 255 at most"
    zero = own.zero_point.astype(np.int64) - layer.q_min
    if padded and (zero.min() < 0 or zero.max() > layer.reach):
        return f"zero points reach {zero.min()}..{zero.max()} above q_min, padding needs 0..{layer.reach}"
    return ""


def padded_parts(program: Program, layers: Mapping[str, Layer]) -> dict[tuple[str, int], bool]:
    """Layer parts of a program in order, and whether any product of theirs reads pixels outside the image."""
    found: dict[tuple[str, int], bool] = {}
    for op in program.ops:
        if op.kind in ("int_linear", "int_conv2d"):
            key = (op.attributes["layer"], op.attributes["part"])
            around = any(layers[key[0]].padding) or any(op.padded)
            found[key] = found.get(key, False) or around
    return found


class FloatConstants:
    """Float parameters and folded values by name.

    Args:
        record: holds the parameters.
        folded: values that tracing folded, which belong to one program.
        parameters: of another program of the record, to share the memory of its parameters.
    """

    def __init__(
        self,
        record: Record,
        folded: Mapping[str, Mapping[str, Any]],
        *,
        parameters: FloatConstants | None = None,
    ) -> None:
        self._record, self._parameters = record, parameters
        self._arrays: dict[str, NDArray[Any]] = {}
        for name, value in folded.items():
            self._arrays[name] = array_of(value)
        self._bases: dict[str, NDArray[Any]] = {}

    def base(self, view: View) -> NDArray[Any]:
        """Memory of the parameter that a view names, one axis, in the order of `views.stored_strides`."""
        name = str(view.buffer)
        if self._parameters is not None and name not in self._arrays:
            return self._parameters.base(view)
        if name not in self._bases:
            values = self._values(name)
            own = name in self._arrays or values.dtype.kind != "f"  # records may hold float16
            wide = values.dtype if own else np.dtype(np.float32)
            if values.dtype == wide and _lies_as_kernels_read(values):
                held = np.lib.stride_tricks.as_strided(values, (values.size,), (values.itemsize,), writeable=False)
                return self._bases.setdefault(name, held)
            flat = aligned_empty((values.size,), wide)
            strides = tuple(s * flat.itemsize for s in stored_strides(values.shape))
            np.lib.stride_tricks.as_strided(flat, values.shape, strides, writeable=True)[...] = values
            self._bases[name] = flat
        return self._bases[name]

    def held(self) -> Mapping[str, NDArray[Any]]:
        """What was asked for so far, by name."""
        return dict(self._bases)

    def _values(self, name: str) -> NDArray[Any]:
        if name in self._arrays:
            return self._arrays[name]
        record = self._record
        if name in record.float_parameters:
            return np.asarray(record.float_parameters[name])
        module, _, kind = name.rpartition(".")
        if module in record.weight_only:
            light = record.weight_only[module]
            value = light.weight() if kind == "weight" else light.bias
            if value is not None:
                return value
        raise DqError(f"the program reads parameter {name}, which the record does not hold; quantize the model again")


def _lies_as_kernels_read(values: NDArray[Any]) -> bool:
    """Whether a parameter lies in memory as the kernels read it and stays so: a mapped file's needs no copy."""
    strides = tuple(step * values.itemsize for step in stored_strides(values.shape))
    return not values.flags.writeable and values.strides == strides and values.ctypes.data % _ALIGNMENT == 0


def address(array: NDArray[Any] | None, offset: int = 0) -> int | None:
    """Address of an element of a flat array; None stays None."""
    return None if array is None else array.ctypes.data + offset * array.itemsize


def integers(values: Any, count: int) -> Any:
    """A C array of 64-bit integers."""
    return (c.c_int64 * count)(*values)
