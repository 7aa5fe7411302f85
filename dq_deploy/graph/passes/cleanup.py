"""Remove what does nothing: what a rewrite left behind, what the tracer wrote for nothing, and constants' copies."""

from __future__ import annotations

import hashlib
from collections import Counter

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from dq_deploy.graph.pass_contract import PassResult
from dq_deploy.graph.trace import MODULE_KEY


class RemoveUnused:
    """Removes nodes and initializers that no output depends on, then sorts the nodes topologically."""

    name = "remove-unused"

    def apply(self, model: ir.Model) -> PassResult:
        """Edit the model in place."""
        removed = RemoveUnusedNodesPass()(model)
        ordered = TopologicalSortPass()(removed.model)
        return PassResult(model=ordered.model, modified=removed.modified or ordered.modified)


class EqualConstantsOnce:
    """Rewrites the uses of an initializer to those of the first one of equal type, shape and content.

    Those that a pass named come first, for the tracer's names are numbers. An initializer that is an input or output
    of the graph keeps its name, and so stays.
    """

    name = "equal-constants-once"

    def apply(self, model: ir.Model) -> PassResult:
        """Edit the model in place."""
        found = [value for value in model.graph.initializers.values() if _may_go(value)]
        found.sort(key=lambda value: not str(value.name).startswith("dq/"))
        alike = Counter(_form(value) for value in found)
        first: dict[tuple[object, ...], ir.Value] = {}
        modified = False
        for value in found:
            if alike[_form(value)] == 1:
                continue  # its content is not read
            assert value.const_value is not None
            digest = hashlib.sha256(value.const_value.tobytes()).digest()
            kept = first.setdefault((*_form(value), digest), value)
            if kept is not value:
                ir.convenience.replace_all_uses_with(value, kept)
                del model.graph.initializers[str(value.name)]
                modified = True
        return PassResult(model=model, modified=modified)


def _may_go(value: ir.Value) -> bool:
    return value.const_value is not None and not value.is_graph_input() and not value.is_graph_output()


def _form(value: ir.Value) -> tuple[object, ...]:
    tensor = value.const_value
    assert tensor is not None
    return tensor.dtype, tuple(tensor.shape)


class ForgetModules:
    """Removes the module paths that the tracer noted on nodes: the last pass, for others find layers by them."""

    name = "forget-modules"

    def apply(self, model: ir.Model) -> PassResult:
        """Edit the model in place."""
        noted = [node for node in model.graph if MODULE_KEY in node.metadata_props]
        for node in noted:
            del node.metadata_props[MODULE_KEY]
        return PassResult(model=model, modified=bool(noted))


class ForgetTypes:
    """Removes types and shapes of the tensors between the nodes, which ONNX Runtime finds by itself.

    Written down they make a small model's file 2 % larger.
    """

    name = "forget-types"

    def apply(self, model: ir.Model) -> PassResult:
        """Edit the model in place."""
        inner = [value for node in model.graph for value in node.outputs if not value.is_graph_output()]
        noted = [value for value in inner if value.type is not None or value.shape is not None]
        for value in noted:
            value.type, value.shape = None, None
        return PassResult(model=model, modified=bool(noted))


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
