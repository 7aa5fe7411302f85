"""Where the layers of a record sit in a traced float graph."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from dq_deploy.errors import RecordError
from dq_deploy.graph.trace import MODULE_KEY
from dq_deploy.record import Layer, Record


@dataclass(frozen=True, kw_only=True)
class Site:
    """One quantized layer in the float graph.

    Attributes:
        layer: the record's layer.
        node: its Conv, Gemm or MatMul.
        output: float tensor behind the bias.
    """

    layer: Layer
    node: ir.Node
    output: ir.Value

    @property
    def input(self) -> ir.Value:
        """Float tensor that enters the layer; read late, for the layer in front may have been rewritten."""
        value = self.node.inputs[0]
        assert value is not None
        return value


_OPS = {"conv2d": ("Conv",), "linear": ("Gemm", "MatMul")}


def find_sites(graph: ir.Graph, record: Record) -> list[Site]:
    """Every layer of the record in graph order.

    Raises:
        RecordError: a layer is not in the graph, or more than once.
    """
    found: dict[str, Site] = {}
    for node in graph:
        layer = record.layers.get(node.metadata_props.get(MODULE_KEY, ""))
        if layer is None or node.op_type not in _OPS[layer.kind]:
            continue
        if layer.name in found:
            raise RecordError(f"layer {layer.name} runs more than once in the traced graph, expected once")
        found[layer.name] = Site(layer=layer, node=node, output=behind_bias(node))
    missing = [name for name in record.layers if name not in found]
    if missing:
        raise RecordError(
            f"layers {', '.join(missing[:3])} of the record are not in the traced graph; "
            "expected a record of this denoiser"
        )
    return list(found.values())


def behind_bias(node: ir.Node) -> ir.Value:
    """The output of a MatMul's bias Add where the tracer wrote one."""
    value = node.outputs[0]
    if node.op_type != "MatMul":
        return value
    uses = list(value.uses())
    if len(uses) != 1:
        return value
    consumer = uses[0].node
    same_module = consumer.metadata_props.get(MODULE_KEY) == node.metadata_props.get(MODULE_KEY)
    if consumer.op_type == "Add" and same_module:
        return consumer.outputs[0]
    return value
