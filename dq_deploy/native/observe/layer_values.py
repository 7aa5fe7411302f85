"""What an integer layer saw and computed in one step, put together from its products, for every device."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dq_deploy.engines.capabilities import LayerValues
from dq_deploy.native.program.joined_products import columns_of
from dq_deploy.native.program.program import Op, Program, View
from dq_deploy.numerics import is_static, row_steps, table_at
from dq_deploy.numerics.arrays import Array
from dq_deploy.record import Layer, Record

PRODUCTS = ("int_linear", "int_conv2d")


@dataclass(frozen=True, kw_only=True)
class ObservedProduct:
    """One part's product, channels last.

    Attributes:
        source: float32 [B, rows, C], what was quantized.
        codes: [B, rows, C] as stored: u = c + z - q_min.
        accumulators: int32 [B, out rows, N].
        output: float32 of the same shape: scaled, with the bias if it is the last part's, and nothing else.
        op: of the program.
    """

    source: Array
    codes: Array
    accumulators: Array
    output: Array
    op: Op


def codes_key(view: View) -> tuple[Any, ...]:
    """Names the codes a view looks at."""
    return (view.buffer, view.offset, view.sizes)


def readers_of(op: Op) -> str:
    """Names for a message: the layers whose codes an op writes, else the norm it is."""
    if op.kind == "attention":
        return f"attention {op.attributes['name']}"
    layers = ", ".join(out["layer"] for out in op.attributes["outs"])
    gamma = op.reads["gamma"].buffer if "gamma" in op.reads else None
    return layers or (gamma.removesuffix(".weight") if isinstance(gamma, str) else f"an op {op.kind}")


def wanted_codes(program: Program, layers: Collection[str] | None) -> set[tuple[Any, ...]]:
    """Codes that the products of some layers read; layers whose codes are equal share them."""
    return {codes_key(op.reads["codes"]) for op in program.ops if is_wanted(op, layers)}


def is_wanted(op: Op, layers: Collection[str] | None) -> bool:
    """Whether an op is a product of one of the layers; None is all."""
    return op.kind in PRODUCTS and (layers is None or any(name in layers for name, _ in columns_of(op)))


def split_columns(product: ObservedProduct) -> dict[tuple[str, int], ObservedProduct]:
    """What each layer of a product computed, by layer and part: its own columns where several are joined."""
    op, found, start = product.op, {}, 0
    for name, count in columns_of(op):
        own = slice(start, None if count is None else start + count)
        start = 0 if count is None else start + count
        found[name, int(op.attributes["part"])] = replace(
            product,
            accumulators=np.ascontiguousarray(product.accumulators[..., own]),
            output=np.ascontiguousarray(product.output[..., own]),
            op=replace(op, attributes={**op.attributes, "layer": name}),
        )
    return found


def out_rows(op: Op) -> int:
    """Rows of a product's output."""
    if op.kind == "int_linear":
        return int(op.reads["codes"].sizes[1])
    height, width = op.attributes["out_size"]
    return int(height * width)


def layer_values(
    record: Record, products: Mapping[tuple[str, int], ObservedProduct], step: Array
) -> dict[str, LayerValues]:
    """Layers by module path from their parts' products.

    Args:
        record: its layers.
        products: by layer and part.
        step: [B] step bucket of each sample.
    """
    names = dict.fromkeys(name for name, _ in products)
    return {name: _layer(record.layers[name], products, step) for name in names}


def _layer(layer: Layer, products: Mapping[tuple[str, int], ObservedProduct], step: Array) -> LayerValues:
    parts = [products[layer.name, index] for index in range(len(layer.parts))]
    output = parts[0].output
    for index in range(1, len(parts)):
        # the bias came with the last part, but the parts' own terms are added first
        term = parts[index].output if layer.bias is None else _without_bias(layer, index, parts[index], step)
        output = (output + term).astype(np.float32)
    if len(parts) > 1 and layer.bias is not None:
        output = (output + _bias_of_rows(layer.bias, output, step)).astype(np.float32)
    return LayerValues(
        inputs=tuple(_as_input(product.source, product.op, 0.0) for product in parts),
        codes=tuple(_as_input(_centred(layer, i, p.codes, step), p.op, 0) for i, p in enumerate(parts)),
        accumulators=tuple(_as_output(product.accumulators, product.op) for product in parts),
        output=_as_output(output, parts[0].op),
    )


def _bias_of_rows(bias: Array, output: Array, step: Array) -> Array:
    """The bias beside values [B, rows, N], of each sample's step where it differs by step."""
    return bias if bias.ndim == 1 else table_at(bias, row_steps(step, len(output)))[:, None, :]


def _without_bias(layer: Layer, index: int, product: ObservedProduct, step: Array) -> Array:
    part = layer.parts[index]
    step = row_steps(step, len(product.codes), static=is_static(layer))
    weight_scale = part.weight_scale[table_at(part.group_of_step, step)]
    factor = (table_at(part.scale, step)[:, None] * weight_scale).astype(np.float32)
    term: Array = (product.accumulators.astype(np.float32) * factor[:, None, :]).astype(np.float32)
    return term


def _centred(layer: Layer, index: int, codes: Array, step: Array) -> Array:
    step = row_steps(step, len(codes), static=is_static(layer))
    zero = (table_at(layer.parts[index].zero_point, step) - layer.q_min).reshape(-1, 1, 1)
    centred: Array = (codes.astype(np.int32) - zero).astype(np.int32)
    return centred


def _as_input(values: Array, op: Op, fill: float) -> Array:
    """[B, rows, C] as [B, C, H, W] with the zeros around it, where the layer is a convolution."""
    if op.kind == "int_linear":
        return values
    height, width = op.attributes["in_size"]
    image = values.reshape(values.shape[0], height, width, -1).transpose(0, 3, 1, 2)
    top, left, bottom, right = op.padded
    if top or left or bottom or right:
        image = np.pad(image, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    return np.ascontiguousarray(image)


def _as_output(values: Array, op: Op) -> Array:
    if op.kind == "int_linear":
        return values
    height, width = op.attributes["out_size"]
    return np.ascontiguousarray(values.reshape(values.shape[0], height, width, -1).transpose(0, 3, 1, 2))
