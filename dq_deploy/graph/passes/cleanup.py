"""Remove what does nothing: what a rewrite left behind, and what the tracer wrote for nothing."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from dq_deploy.graph.pass_contract import PassResult


class RemoveUnused:
    """Removes nodes and initializers that no output depends on, then sorts the nodes topologically."""

    name = "remove-unused"

    def apply(self, model: ir.Model) -> PassResult:
        """Edit the model in place."""
        removed = RemoveUnusedNodesPass()(model)
        ordered = TopologicalSortPass()(removed.model)
        return PassResult(model=ordered.model, modified=removed.modified or ordered.modified)


class NeedlessSqueezes:
    """Rewrites Squeeze(x) whose output has as many axes as x to x.

    In torch an axis that is not 1 stays where it is squeezed; ONNX refuses that.
    """

    name = "needless-squeezes"

    def apply(self, model: ir.Model) -> PassResult:
        """Edit the model in place."""
        found = [node for node in model.graph if node.op_type == "Squeeze" and _same_axes(node)]
        for node in found:
            source = node.inputs[0]
            assert source is not None
            ir.convenience.replace_all_uses_with(node.outputs[0], source)
            model.graph.remove(node, safe=True)
        return PassResult(model=model, modified=bool(found))


def _same_axes(node: ir.Node) -> bool:
    source, made = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or made.shape is None or made.is_graph_output():
        return False
    return len(source.shape) == len(made.shape)
