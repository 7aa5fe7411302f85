"""Products of the same codes as one, their columns side by side: q, k and v of an attention.

Exact: each column is summed, scaled and biased by itself, so the bits are those of the products apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dq_deploy.native.program.joins import is_taken
from dq_deploy.native.program.layer_constants import product_tables
from dq_deploy.native.program.program import Buffer, Op, Program, View, without_unused_buffers
from dq_deploy.native.program.views import widened
from dq_deploy.record import Layer

COLUMNS = "columns"
"""Attribute of a joined product: [name, columns] of each layer."""


@dataclass(frozen=True, kw_only=True)
class JoinedProducts:
    """A program with joined products.

    Attributes:
        program: its products name a layer of `layers`.
        layers: those that were joined, by their new names.
    """

    program: Program
    layers: Mapping[str, Layer]


def columns_of(op: Op) -> list[tuple[str, int | None]]:
    """Layers that a product computes, with the columns of each; None where it is all of them."""
    found: Any = op.attributes.get(COLUMNS)
    return [(str(op.attributes["layer"]), None)] if found is None else [(str(name), int(n)) for name, n in found]


def with_joined_products(program: Program, layers: Mapping[str, Layer]) -> JoinedProducts:
    """The program with linear layers of one part joined that read the same codes and do nothing else.

    Each result must fill a buffer of its own that is neither an input nor an output, and whoever reads it must take
    rows that lie further apart.

    Args:
        program: of one batch size, for a GPU or a CPU.
        layers: the record's.
    """
    joined: dict[str, Layer] = {}
    for group in _groups(program, layers):
        made = _joined(program, group, layers)
        if made is not None:
            program, layer = made
            joined[layer.name] = layer
    return JoinedProducts(program=without_unused_buffers(program), layers=joined)


def joined_layer(layers: Sequence[Layer]) -> Layer:
    """One linear layer with the output channels of several that quantize alike, in order."""
    parts = [layer.parts[0] for layer in layers]
    names = ("w_code", "w_zero_point", "weight_scale")
    whole = {name: np.concatenate([getattr(part, name) for part in parts], axis=1) for name in names}
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return replace(
        layers[0],
        name="+".join(layer.name for layer in layers),
        parts=(replace(parts[0], **whole),),
        bias=np.concatenate(biases) if biases else None,
        out_scale=None,
        out_zero_point=None,
    )


def _groups(program: Program, layers: Mapping[str, Layer]) -> list[list[Op]]:
    """Products that may be one, by the codes they read and what they do with them."""
    fixed = {v.buffer for v in (*program.inputs.values(), *program.outputs.values())}
    found: dict[tuple[Any, ...], list[Op]] = {}
    for op in program.ops:
        if op.kind != "int_linear" or set(op.reads) != {"codes"} or any(op.padded):
            continue
        layer, y = layers[op.attributes["layer"]], op.writes["y"]
        if len(layer.parts) > 1 or y.buffer in fixed or not _fills(program, y) or not _alone(program, op):
            continue
        part = layer.parts[0]
        if part.w_shape[0] > 1 or (layer.bias is not None and layer.bias.ndim > 1):
            continue
        scale, zero = product_tables(layer, 0)
        kind = (layer.q_min, layer.q_max, layer.weight_bits, layer.bias is None, part.fits_int8)
        found.setdefault((op.reads["codes"], scale.tobytes(), zero.tobytes(), kind), []).append(op)
    return [ops for ops in found.values() if len(ops) > 1]


def _fills(program: Program, y: View) -> bool:
    """Whether a product's result is the whole of its buffer, row behind row."""
    buffer = program.buffers[int(y.buffer)]
    dense = tuple(int(np.prod(y.sizes[i + 1 :])) for i in range(len(y.sizes)))
    return y.offset == 0 and buffer.elements == int(np.prod(y.sizes)) and y.strides == dense


def _alone(program: Program, op: Op) -> bool:
    """Whether nobody else writes a product's buffer."""
    buffer = op.writes["y"].buffer
    return sum(view.buffer == buffer for other in program.ops for view in other.writes.values()) == 1


def _joined(program: Program, group: list[Op], layers: Mapping[str, Layer]) -> tuple[Program, Layer] | None:
    """The program with a group as one product, and its layer; None where a reader of a result cannot be told."""
    layer = joined_layer([layers[op.attributes["layer"]] for op in group])
    first, pitch, target = group[0].writes["y"], layer.out_channels, len(program.buffers)
    moved: dict[View, View] = {}
    start = 0
    for op in group:
        channels = layers[op.attributes["layer"]].out_channels
        for other in program.ops:
            for role, view in (*other.reads.items(), *other.writes.items()):
                if view.buffer != op.writes["y"].buffer:
                    continue
                new = widened(view, channels=channels, pitch=pitch, first=start, buffer=target)
                if new is None or not (other is op or is_taken(other.kind, role, new)):
                    return None
                moved[view] = new
        start += channels
    rows = first.sizes[:-1]
    strides = tuple(int(np.prod([*rows[i + 1 :], pitch])) for i in range(len(rows)))
    y = View(buffer=target, offset=0, sizes=(*rows, pitch), strides=(*strides, 1))
    columns = [[name, layers[name].out_channels] for name in (str(op.attributes["layer"]) for op in group)]
    attributes = {**group[0].attributes, "layer": layer.name, COLUMNS: columns}
    others = {id(op) for op in group[1:]}
    whole = replace(group[0], writes={"y": y}, attributes=attributes)
    ops = [whole if op is group[0] else _told(op, moved) for op in program.ops if id(op) not in others]
    dtype = program.buffers[int(first.buffer)].dtype
    buffer = Buffer(elements=int(np.prod(y.sizes)), dtype=dtype)
    return replace(program, ops=tuple(ops), buffers=(*program.buffers, buffer)), layer


def _told(op: Op, moved: Mapping[View, View]) -> Op:
    if not any(view in moved for view in op.views()):
        return op
    reads = {role: moved.get(view, view) for role, view in op.reads.items()}
    return replace(op, reads=reads, writes={role: moved.get(view, view) for role, view in op.writes.items()})
