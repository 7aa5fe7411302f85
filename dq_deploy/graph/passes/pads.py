"""Padding that the tracer merged into a convolution, put back in front of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dq_deploy.graph.pass_contract import PassResult
from dq_deploy.graph.trace import MODULE_KEY
from dq_deploy.graph.writing.builder import Builder
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
            extra = np.array(node.attributes["pads"].as_ints()) - np.array(layer.padding)
            if not extra.any():
                continue
            if extra.min() < 0:
                notes.append(f"{layer.name}: traced padding is smaller than the module's")
                continue
            self._separate(model.graph, node, layer.name, extra)
            node.attributes["pads"] = ir.AttrInt64s("pads", list(layer.padding))
            modified = True
        return PassResult(model=model, modified=modified, notes=tuple(notes))

    def _separate(self, graph: ir.Graph, node: ir.Node, name: str, extra: np.ndarray) -> None:
        x = node.inputs[0]
        assert x is not None
        b = Builder(graph, node, f"pad/{name}")
        top, left, bottom, right = (int(v) for v in extra)
        pads = b.constant(np.array([0, 0, top, left, 0, 0, bottom, right], np.int64), "pads")
        padded = b.op("Pad", [x, pads], "out")
        padded.type = x.type
        if x.shape is not None:
            batch, channels, height, width = x.shape
            assert isinstance(height, int)
            assert isinstance(width, int)
            padded.shape = ir.Shape([batch, channels, height + top + bottom, width + left + right])
        node.replace_input_with(0, padded)
