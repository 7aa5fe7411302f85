"""A traced graph -> the program of one step.

What becomes one op:

- group norm, with the SiLU behind it, and the codes of every integer layer that reads it;
- layer norm with the codes of its readers; value * gelu(gate) with the codes of its reader;
- an integer product with its scales, bias, a row added to every pixel (the time embedding) and a residual;
- quantizers of the same tensor that give the same codes are one.

Everything else is an op of its own; what no kernel does is a `host` op.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.fx import Node

from dq_deploy.errors import ModelError
from dq_deploy.native.lower import float_rules, fusion
from dq_deploy.native.lower.host_rules import host
from dq_deploy.native.lower.layer_rules import LayerRules
from dq_deploy.native.lower.values import Values
from dq_deploy.native.program.program import Program, without_unused_buffers
from dq_deploy.native.trace.geometry import Geometry
from dq_deploy.native.trace.graph import TracedGraph

aten = torch.ops.aten

LoweringRule = Callable[[Values, Node], None]

_SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int)
_FLOAT_RULES: Mapping[Any, LoweringRule] = {
    aten.cat.default: float_rules.cat,
    aten.stack.default: float_rules.stack,
    aten.avg_pool2d.default: float_rules.average,
    aten.constant_pad_nd.default: float_rules.pad,
    aten.clone.default: float_rules.copy,
    aten._to_copy.default: float_rules.copy,
    aten.lift_fresh_copy.default: float_rules.copy,
    aten.copy.default: float_rules.written,
    aten.neg.default: float_rules.negative,
    aten.rsub.Scalar: float_rules.reversed_difference,
    aten.pow.Tensor_Scalar: float_rules.power,
    aten.bmm.default: float_rules.float_linear,
    aten.upsample_nearest2d.default: float_rules.upsample,
    aten.convolution.default: float_rules.float_conv2d,
    aten.addmm.default: float_rules.float_linear,
    aten.mm.default: float_rules.float_linear,
    aten._scaled_dot_product_flash_attention_for_cpu.default: float_rules.attention,
    **{op: float_rules.elementwise for op in (*float_rules.UNARY, *float_rules.BINARY)},
}


class Lowering:
    """Builds the program node by node."""

    def __init__(self, traced: TracedGraph, layers: Mapping[str, Geometry], dependent: Collection[str] = ()) -> None:
        """Take a traced graph.

        Args:
            traced: of `tracing.trace`.
            layers: quantized layers by module path.
            dependent: names of the nodes that are other ones for another batch.
        """
        self._values = Values(traced, dependent)
        self._layers = LayerRules(self._values, layers)
        self._same: dict[tuple[Any, ...], Node] = {}
        self._layer_rules: Mapping[Any, Callable[[Node], None]] = {
            torch.ops.dq_native.integer_layer.default: self._layers.integer_layer,
            torch.ops.dq_native.attention.default: partial(float_rules.named_attention, self._values),
            aten.native_group_norm.default: self._layers.group_norm,
            aten.native_layer_norm.default: self._layers.layer_norm,
            aten.gelu.default: self._layers.gelu,
        }

    def program(self, input_names: Sequence[str], output_names: Sequence[str]) -> Program:
        """Lower the whole graph.

        Raises:
            ModelError: an operation that the native engine does not know.
        """
        values = self._values
        _refuse_writes_in_place(values.graph.graph.nodes)
        values.graph.graph.eliminate_dead_code()  # a layer nobody reads has no product, so nobody writes its codes
        nodes = list(values.graph.graph.nodes)
        inputs = [node for node in nodes if node.op == "placeholder"]
        given = [values.fresh(node) for node in inputs]
        values.views.update(zip(inputs, given, strict=True))
        for node in nodes:
            if node.op == "call_function" and node.users and node not in values.done:
                self._visit(node)
        self._refuse_read_weights()
        outputs = next(node for node in nodes if node.op == "output").args[0]
        return without_unused_buffers(
            Program(
                buffers=tuple(values.buffers),
                inputs=dict(zip(input_names, given, strict=True)),
                outputs={n: values.view(v) for n, v in zip(output_names, outputs, strict=True)},
                ops=tuple(values.ops),
                constants=values.constants,
            )
        )

    def _refuse_read_weights(self) -> None:
        """Weights of an integer layer are no floats that another operation could read."""
        read = {str(view.buffer) for op in self._values.ops for view in op.reads.values()}
        for name in self._layers.layers:
            if f"{name}.weight" in read or f"{name}.bias" in read:
                raise ModelError(
                    f"the denoiser reads the weights of layer {name} outside it, where an integer layer has none; keep "
                    "the layer in float"
                )

    def _visit(self, node: Node) -> None:
        if node in self._layers.products:
            self._layers.product(self._layers.products[node])
        elif self._values.fold(node) or self._values.find_view(node) or self._repeats(node) or _is_nothing(node):
            return
        elif node.target in self._layer_rules:
            self._layer_rules[node.target](node)
        else:
            _FLOAT_RULES.get(node.target, host)(self._values, node)

    def _repeats(self, node: Node) -> bool:
        """Whether the same was done to the same values before."""
        if getattr(node.target, "namespace", "") != "aten" or node.target in _SPLITS:
            return False
        first = self._same.setdefault((node.target, str(node.args), str(node.kwargs)), node)
        if first is node or first not in self._values.views:
            return False
        self._values.set(node, self._values.views[first])
        return True


def _refuse_writes_in_place(nodes: Iterable[Node]) -> None:
    """Values never change here; torch says which operations change what they are given."""
    for node in nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            raise ModelError(f"operation {node.target} writes in place, expected none; export the record instead")


def _is_nothing(node: Node) -> bool:
    """Whether nothing runs: views of an input, zeros that a convolution reads by itself."""
    padding = node.target is aten.constant_pad_nd.default
    return node.target in _SPLITS or (padding and fusion.padded_for_layer(node))
