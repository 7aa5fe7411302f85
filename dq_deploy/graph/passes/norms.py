"""GroupNormalization in the form ONNX Runtime computes fastest on a CPU."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from dq_deploy.graph.pass_contract import PassResult
from dq_deploy.graph.trace import MODULE_KEY
from dq_deploy.graph.writing.builder import Builder, replace_uses


class GroupNormAsInstanceNorm:
    """Rewrites GroupNormalization(x, gamma, beta, G) with constant gamma and beta.

    - Reshape x to [B, G, C/G * H * W]
    - InstanceNormalization with unit scale and zero bias, per group
    - Reshape back, Mul gamma, Add beta

    Declined where gamma or beta is not constant or the number of axes is not known.
    """

    name = "group-norm-as-instance-norm"

    def apply(self, model: ir.Model) -> PassResult:
        """Edit the model in place."""
        notes: list[str] = []
        modified = False
        for index, node in enumerate([n for n in model.graph if n.op_type == "GroupNormalization"]):
            reason = self._rewrite(model.graph, node, index)
            if reason:
                notes.append(f"{node.name}: {reason}")
            else:
                modified = True
        return PassResult(model=model, modified=modified, notes=tuple(notes))

    def _rewrite(self, graph: ir.Graph, node: ir.Node, index: int) -> str:
        x, gamma, beta = node.inputs
        if x is None or gamma is None or beta is None or gamma.const_value is None or beta.const_value is None:
            return "scale or bias is not a constant"
        if x.shape is None:
            return "the number of axes of the input is not known"
        tail = [d if isinstance(d, int) else -1 for d in list(x.shape)[1:]]
        groups = node.attributes["num_groups"].as_int()
        epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
        path = node.metadata_props.get(MODULE_KEY, str(index))
        b = Builder(graph, node, f"norm/{path}")
        affine = [1, -1] + [1] * (len(tail) - 1)
        grouped = b.op("Reshape", [x, b.constant(np.array([0, groups, -1], np.int64), "group")], "grouped")
        ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
        normed = b.op(
            "InstanceNormalization",
            [grouped, b.constant(ones, "one"), b.constant(zeros, "zero")],
            "normalized",
            attributes={"epsilon": epsilon},
        )
        if tail.count(-1) > 1:
            shape = b.op("Shape", [x], "shape", dtype=ir.DataType.INT64)
        else:
            shape = b.constant(np.array([0, *tail], np.int64), "shape")
        back = b.op("Reshape", [normed, shape], "ungrouped")
        g = b.constant(gamma.const_value.numpy().reshape(affine), "gamma")
        scaled = b.op("Mul", [back, g], "scaled")
        y = b.op("Add", [scaled, b.constant(beta.const_value.numpy().reshape(affine), "beta")], "out")
        replace_uses(node.outputs[0], y)
        graph.remove(node, safe=True)
        return ""
