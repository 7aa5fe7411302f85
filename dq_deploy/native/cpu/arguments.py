"""Ops of a program as the kernels' argument structs, for memory at known addresses."""

from __future__ import annotations

import ctypes as c
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from dq_kernels.cpu import structs
from numpy.typing import NDArray

from dq_deploy.native.program.attention_tables import AttentionTables
from dq_deploy.native.program.layer_constants import LayerConstants, integers
from dq_deploy.native.program.product_codes import ProductCodes
from dq_deploy.native.program.program import Op, Program, View
from dq_deploy.native.program.views import rows_view
from dq_deploy.numerics import row_steps


class Memory(Protocol):
    """Where views lie."""

    def address(self, view: View) -> int:
        """Address of a view's first element."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What structs of one batch size refer to.

    Attributes:
        memory: of the views.
        constants: of each integer layer's parts.
        steps: int32 step bucket of each entry of a leading axis, by the length of that axis; see `numerics.row_steps`.
        nan_seen: [ops] int32, set where an op met a NaN.
        attention: what attention's products are computed in.
        tables: of attentions that have quantizers, by role.
        single_rows: rows that each float linear layer has for one sample, by the number of its op: by them its kernel
            chooses the order of its sums, so that what a sample gets does not depend on the batch.
    """

    memory: Memory
    constants: Mapping[tuple[str, int], LayerConstants]
    steps: Mapping[int, NDArray[np.int32]]
    nan_seen: NDArray[np.int32]
    single_rows: Mapping[int, int]
    attention: str = "float32"
    tables: Mapping[str, AttentionTables] = field(default_factory=dict)

    def step_of(self, rows: View) -> NDArray[np.int32]:
        """Step bucket of each entry of what an op reads, [entries, rows, channels]."""
        return self.steps[rows.sizes[0]]

    def fill(self, step: NDArray[np.integer]) -> None:
        """Say the step bucket of each sample."""
        for rows, values in self.steps.items():
            values[...] = row_steps(step, rows, static=True)


def _optional(bound: Bound, views: Mapping[str, View], role: str) -> int | None:
    return bound.memory.address(views[role]) if role in views else None


def _outs(bound: Bound, op: Op, index: int) -> Any:
    out = op.attributes["outs"][index]
    codes = op.writes[f"codes{index}"]
    own = bound.constants[out["layer"], out["part"]]
    return structs.CodeOutput(
        own.quantizer(), bound.memory.address(codes), out["first"], out["channels"], codes.strides[1]
    )


def _flag(bound: Bound, index: int) -> int:
    return bound.nan_seen.ctypes.data + index * bound.nan_seen.itemsize


def _quantize(bound: Bound, op: Op, index: int) -> c.Structure:
    x = op.reads["x"]
    return structs.QuantizeArgs(
        x=bound.memory.address(x),
        step=bound.step_of(x).ctypes.data,
        nan_seen=_flag(bound, index),
        batch=x.sizes[0],
        rows=x.sizes[1],
        x_pitch=x.strides[1],
        out=_outs(bound, op, 0),
    )


def _normed(bound: Bound, op: Op, index: int) -> dict[str, Any]:
    """Fields that the ops which give a float value and codes of it have in common."""
    x, y = op.reads["x"], op.writes.get("y")
    return {
        "x": bound.memory.address(x),
        "y": _optional(bound, op.writes, "y"),
        "step": bound.step_of(x).ctypes.data,
        "nan_seen": _flag(bound, index),
        "batch": x.sizes[0],
        "rows": x.sizes[1],
        "x_pitch": x.strides[1],
        "y_pitch": 0 if y is None else y.strides[1],
        "parts": len(op.attributes["outs"]),
    }


def _norm(bound: Bound, op: Op, index: int) -> c.Structure:
    fields = _normed(bound, op, index)
    fields |= {name: _optional(bound, op.reads, name) for name in ("gamma", "beta")}
    fields |= {"channels": op.reads["x"].sizes[2], "eps": op.attributes["eps"]}
    if op.kind == "layer_norm_quantize":
        args = structs.LayerNormQuantizeArgs(**fields)
    else:
        args = structs.GroupNormSiluQuantizeArgs(
            **fields, groups=op.attributes["groups"], silu=int(op.attributes["silu"])
        )
    for place in range(fields["parts"]):
        args.out[place] = _outs(bound, op, place)
    return args


def _geglu(bound: Bound, op: Op, index: int) -> c.Structure:
    args = structs.GegluQuantizeArgs(**_normed(bound, op, index), channels=op.reads["x"].sizes[2] // 2)
    if op.attributes["outs"]:
        args.out = _outs(bound, op, 0)
    return args


def _pitch(view: View, *, image: bool) -> int:
    return rows_view(view, 1 if image else -1).strides[1]


def _epilogue(bound: Bound, op: Op, own: LayerConstants, *, image: bool) -> Any:
    y, residual, row = op.writes["y"], op.reads.get("residual"), op.reads.get("row")
    bias = own.bias if op.attributes["final"] else None
    return structs.Epilogue(
        weight_scale=own.weight_scale.ctypes.data,
        previous=_optional(bound, op.reads, "previous"),
        bias=None if bias is None else bias.ctypes.data,
        row=_optional(bound, op.reads, "row"),
        residual=_optional(bound, op.reads, "residual"),
        y=bound.memory.address(y),
        accumulators=None,
        row_pitch=0 if row is None else row.strides[0],
        residual_pitch=0 if residual is None else _pitch(residual, image=image),
        y_pitch=_pitch(y, image=image),
        bias_pitch=0 if bias is None or bias.ndim == 1 else bias.shape[1],
    )


def _product(bound: Bound, op: Op) -> dict[str, Any]:
    own = bound.constants[op.attributes["layer"], op.attributes["part"]]
    codes = op.reads["codes"]
    assert own.packed is not None
    return {
        "codes": bound.memory.address(codes),
        "weights": own.packed.ctypes.data,
        "step": bound.step_of(codes).ctypes.data,
        "batch": codes.sizes[0],
        "channels": codes.sizes[2],
        "code_pitch": codes.strides[1],
        "out_channels": own.layer.out_channels,
        "quantizer": own.quantizer(),
        "epilogue": _epilogue(bound, op, own, image=op.kind == "int_conv2d"),
    }


def _int_linear(bound: Bound, op: Op, _index: int) -> c.Structure:
    return structs.IntLinearArgs(**_product(bound, op), rows=op.reads["codes"].sizes[1])


def window_of(op: Op, own: LayerConstants) -> dict[str, int]:
    """Kernel, stride, padding and dilation of a convolution, with the zeros put around its input on the way."""
    window = own.layer.window.padded_by(op.padded)
    return {
        "kernel_h": window.kernel[0],
        "kernel_w": window.kernel[1],
        "stride_h": window.stride[0],
        "stride_w": window.stride[1],
        "pad_top": window.padding[0],
        "pad_left": window.padding[1],
        "dilation_h": window.dilation[0],
        "dilation_w": window.dilation[1],
    }


def _int_conv2d(bound: Bound, op: Op, _index: int) -> c.Structure:
    own = bound.constants[op.attributes["layer"], op.attributes["part"]]
    (height, width), (out_height, out_width) = op.attributes["in_size"], op.attributes["out_size"]
    sizes = {"height": height, "width": width, "out_height": out_height, "out_width": out_width}
    return structs.IntConv2dArgs(**_product(bound, op), **sizes, **window_of(op, own))


def _elementwise(bound: Bound, op: Op, _index: int) -> c.Structure:
    y = op.writes["y"]
    missing = 6 - len(y.sizes)

    def six(values: tuple[int, ...], fill: int) -> Any:
        return integers((*((fill,) * missing), *values), 6)

    a, b = op.reads["a"], op.reads.get("b")
    return structs.ElementwiseArgs(
        a=bound.memory.address(a),
        b=None if b is None else bound.memory.address(b),
        y=bound.memory.address(y),
        size=six(y.sizes, 1),
        a_stride=six(a.strides, 0),
        b_stride=six(a.strides if b is None else b.strides, 0),
        y_stride=six(y.strides, 0),
        kind=structs.ELEMENTWISE_KINDS.index(op.attributes["function"]),
        scalar=op.attributes["scalar"],
    )


def _attention(bound: Bound, op: Op, index: int) -> c.Structure:
    q, k = op.reads["q"], op.reads["k"]
    views = {"q": q, "k": k, "v": op.reads["v"], "y": op.writes["y"]}
    fields: dict[str, Any] = {name: bound.memory.address(view) for name, view in views.items()}
    fields |= {f"{name}_stride": integers(view.strides[:3], 3) for name, view in views.items()}
    batch, heads, rows, dim = q.sizes
    precision = bound.attention
    tables = bound.tables.get(op.attributes.get("name", ""))
    if tables is not None:  # only where codes are asked for
        fields["codes"] = tables.struct(step=bound.step_of(q), nan_seen=_flag(bound, index))
    elif precision == "int8":
        precision = "float32"
    return structs.AttentionArgs(
        **fields,
        batch=batch,
        heads=heads,
        q_rows=rows,
        kv_rows=k.sizes[2],
        head_dim=dim,
        scale=op.attributes["scale"],
        precision=structs.PRECISIONS.index(precision),
    )


def _float_linear(bound: Bound, op: Op, index: int) -> c.Structure:
    x, y, weights = rows_view(op.reads["x"], -1), rows_view(op.writes["y"], -1), op.reads["weights"]
    return structs.FloatLinearArgs(
        x=bound.memory.address(x),
        weights=bound.memory.address(weights),
        bias=_optional(bound, op.reads, "bias"),
        y=bound.memory.address(y),
        rows=x.sizes[0] * x.sizes[1],
        channels=x.sizes[2],
        out_channels=y.sizes[2],
        x_pitch=x.strides[1],
        y_pitch=y.strides[1],
        rows_of_sample=bound.single_rows[index],
    )


def _float_conv2d(bound: Bound, op: Op, _index: int) -> c.Structure:
    x, y, weights = op.reads["x"], op.writes["y"], op.reads["weights"]
    batch, channels, height, width = x.sizes
    n, _, kernel_h, kernel_w = weights.sizes
    (stride_h, stride_w), (top, left) = op.attributes["stride"], op.attributes["padding"]
    dilation_h, dilation_w = op.attributes["dilation"]
    return structs.FloatConv2dArgs(
        bound.memory.address(x),
        bound.memory.address(weights),
        _optional(bound, op.reads, "bias"),
        bound.memory.address(y),
        *(batch, height, width, channels, n, y.sizes[2], y.sizes[3]),
        *(_pitch(x, image=True), _pitch(y, image=True)),
        *(kernel_h, kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w),
        *(op.attributes["groups"], 0),
    )


_BUILDERS = {
    "quantize": _quantize,
    "group_norm_silu_quantize": _norm,
    "layer_norm_quantize": _norm,
    "geglu_quantize": _geglu,
    "int_linear": _int_linear,
    "int_conv2d": _int_conv2d,
    "elementwise": _elementwise,
    "attention": _attention,
    "float_linear": _float_linear,
    "float_conv2d": _float_conv2d,
}


def product_codes_struct(bound: Bound, program: Program, found: ProductCodes) -> c.Structure:
    """The argument struct of a linear layer and the codes of its result in one.

    Args:
        bound: memory and tables.
        program: of one batch size.
        found: which ops of it.
    """
    linear: Any = struct_of(bound, program.ops[found.first], found.first)
    linear.epilogue.y = None
    return structs.IntLinearCodesArgs(
        linear=linear,
        nan_seen=_flag(bound, found.last),
        activation=structs.ELEMENTWISE_KINDS.index(found.activation),
        gated=int(found.gated),
        out=_outs(bound, program.ops[found.last], 0),
    )


def single_rows(program: Program, of_one: Program) -> dict[int, int]:
    """Rows that each float linear layer of a program has for one sample, by the number of its op.

    Args:
        program: of any batch.
        of_one: the same of one sample, which may have other copies in between.
    """
    places, ones = ([i for i, op in enumerate(p.ops) if op.kind == "float_linear"] for p in (program, of_one))
    views = (rows_view(of_one.ops[i].reads["x"], -1) for i in ones)
    return {place: view.sizes[0] * view.sizes[1] for place, view in zip(places, views, strict=True)}


def struct_of(bound: Bound, op: Op, index: int) -> c.Structure:
    """The argument struct of an op.

    Args:
        bound: memory and tables.
        op: of the program, any kind but `host`.
        index: its place in the program, for its NaN flag.
    """
    return _BUILDERS[op.kind](bound, op, index)
