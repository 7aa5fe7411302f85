"""Remove what a rewrite left behind, so that the file holds nothing unused."""

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
