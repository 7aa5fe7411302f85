"""Padding that the tracer merged into a convolution, put back in front of it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from dq_deploy.graph.pass_contract import PassResult
from dq_deploy.graph.trace import MODULE_KEY
from dq_deploy.graph.writing.builder import Builder, image_pads
from dq_deploy.graph.writing.image_sizes import padded_shape
from dq_deploy.numerics.geometry import Padding
from dq_deploy.record import Record


@dataclass
class PadsAsModules:
    """Rewrites Conv(x, pads = p) of a layer whose module pads by m < p to Conv(Pad(x, p - m), pads = m).

    The exporter merges a separate F.pad into the convolution behind it. The record's layer, its codes and the
    simulation see the padded tensor, so the graph gets it back.

    Declined where the merged padding is smaller than the module's.
    """

    record: Record
    name: str = "pads-as-modules"

    def apply(self, model: ir.Model) -> PassResult:
        """Edit the model in place."""
        notes = []
        modified = False
        for node in [n for n in model.graph if n.op_type == "Conv"]:
            layer = self.record.layers.get(node.metadata_props.get(MODULE_KEY, ""))
            if layer is None or "pads" not in node.attributes:
                continue
            traced = node.attributes["pads"].as_ints()
            top, left, bottom, right = (a - b for a, b in zip(traced, layer.padding, strict=True))
            extra = (top, left, bottom, right)
            if not any(extra):
                continue
            if min(extra) < 0:
                notes.append(f"{layer.name}: traced padding is smaller than the module's")
                continue
            self._separate(model.graph, node, layer.name, extra)
            node.attributes["pads"] = ir.AttrInt64s("pads", list(layer.padding))
            modified = True
        return PassResult(model=model, modified=modified, notes=tuple(notes))

    def _separate(self, graph: ir.Graph, node: ir.Node, name: str, extra: Padding) -> None:
        x = node.inputs[0]
        assert x is not None
        b = Builder(graph, node, f"pad/{name}")
        padded = b.op("Pad", [x, b.constant(image_pads(extra), "pads")], "out")
        padded.type = x.type
        padded.shape = padded_shape(x, extra)
        node.replace_input_with(0, padded)
