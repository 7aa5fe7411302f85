"""Where the values of a traced graph lie in the program's buffers, and the ops emitted so far."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from dq_deploy.engines.native import fusion, views
from dq_deploy.engines.native.program import Buffer, Op, View
from dq_deploy.errors import ModelError

aten = torch.ops.aten
Node = torch.fx.Node


class Values:
    """Values by node, buffers and ops.

    Attributes:
        graph: the traced graph.
        views: where the value of each node lies.
        buffers: memory of the program.
        ops: in order.
        constants: values folded while lowering, see `program.Program`.
        done: nodes another one's op does.
    """

    def __init__(self, graph: torch.fx.GraphModule, keys: Mapping[str, str]) -> None:
        self.graph, self._keys = graph, keys
        self.views: dict[Node, View] = {}
        self.buffers: list[Buffer] = []
        self.ops: list[Op] = []
        self.constants: dict[str, dict[str, Any]] = {}
        self.done: set[Node] = set()
        self._folded: dict[Node, torch.Tensor] = {}
        self._laid: set[Node] = set()  # values that lie in another order than torch gave them

    def fresh(self, node: Node) -> View:
        """A new buffer for a value: images channels last, everything else as torch lays it out."""
        value = node.meta["val"]
        shape, strides = tuple(value.shape), tuple(value.stride())
        if value.ndim == 4:
            strides = views.channels_last_strides(shape, 1)
            if strides != tuple(value.stride()):
                self._laid.add(node)
        return self.new_view(shape, strides, str(value.dtype).removeprefix("torch."))

    def new_view(self, sizes: Sequence[int], strides: Sequence[int], dtype: str = "float32") -> View:
        """A new buffer that holds these sizes at these strides."""
        extent = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        self.buffers.append(Buffer(elements=extent, dtype=dtype))
        return View(buffer=len(self.buffers) - 1, offset=0, sizes=tuple(sizes), strides=tuple(strides))

    def view(self, node: Node) -> View:
        """Where the value of a node lies; parameters and folded values are named."""
        if node in self.views:
            return self.views[node]
        value = node.meta["val"] if "val" in node.meta else getattr(self.graph, node.target)
        if node.op == "get_attr":
            name = self._keys[node.target]
            if not name:
                raise ModelError(f"the denoiser holds a tensor {node.target} without a name; expected parameters alone")
        elif node in self._folded:
            name = f"folded.{node.name}"
            folded = self._folded[node].contiguous()
            self.constants[name] = {
                "dtype": str(folded.dtype).removeprefix("torch."),
                "shape": list(folded.shape),
                "values": folded.reshape(-1).tolist(),
            }
        else:
            raise ModelError(f"operation {node.target} is used before it was lowered")
        self.views[node] = View(buffer=name, offset=0, sizes=tuple(value.shape), strides=tuple(value.stride()))
        return self.views[node]

    def emit(self, kind: str, reads: Mapping[str, View], writes: Mapping[str, View], **attributes: Any) -> None:
        """Append an op."""
        self.ops.append(Op(kind=kind, reads=dict(reads), writes=dict(writes), attributes=attributes))

    def find_view(self, node: Node) -> bool:
        """Whether a node's value is a view of one of its inputs; then it lies where that lies."""
        base = fusion.viewed(node)
        if base is None:
            return False
        if base in self._folded:
            return False
        if base.op != "get_attr" and base not in self.views:
            return base in self.done
        at, value, origin = self.view(base), node.meta["val"], base.meta.get("val")
        if origin is None:
            origin = getattr(self.graph, base.target)
        moved = int(value.storage_offset()) - int(origin.storage_offset())
        told = View(buffer=at.buffer, offset=moved, sizes=tuple(value.shape), strides=tuple(value.stride()))
        if base in self._laid:
            seen = views.restrided(told, origin.stride(), at.strides, at.sizes)
            if seen is None:  # it splits what lies in another order here: copy to torch's order
                self._laid.remove(base)
                self.views[base] = self.new_view(tuple(origin.shape), tuple(origin.stride()))
                self.emit("elementwise", {"a": at}, {"y": self.views[base]}, function="copy", scalar=0.0)
                return self.find_view(node)
            self.views[node] = replace(seen, offset=at.offset)
            self._laid.add(node)
            return True
        self.views[node] = replace(told, offset=at.offset + moved)
        return True

    def fold(self, node: Node) -> bool:
        """Compute now what depends on no input, no parameter and no batch."""
        if node.target in (aten.ones.default, aten.zeros.default, aten.full.default):
            return False
        if any(given not in self._folded for given in node.all_input_nodes):
            return False
        if not isinstance(node.meta.get("val"), torch.Tensor) or node.target is operator.getitem:
            return False
        arguments = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: self._folded[n])
        self._folded[node] = node.target(*arguments[0], **arguments[1])
        return True

    def strides_of(self, node: Node) -> tuple[int, ...]:
        """How a value lies, or will lie where it is not lowered yet."""
        return self.views[node].strides if node in self.views else tuple(node.meta["val"].stride())

    def dense(self, node: Node, axis: int) -> View:
        """The view of a value with adjacent channels, on `axis`, and evenly spaced pixels; copied if it is not so."""
        at = self.view(node)
        if views.has_even_rows(at, axis):
            return at
        value = node.meta["val"]
        order = views.channels_last_strides(tuple(value.shape), axis)
        copied = self.new_view(tuple(value.shape), order)
        self.emit("elementwise", {"a": at}, {"y": copied}, function="copy", scalar=0.0)
        return copied

    def virtual(self, node: Node, axis: int) -> View:
        """A view, channels last, for a value that may never be written."""
        if node not in self.views:
            value = node.meta["val"]
            strides = views.channels_last_strides(tuple(value.shape), axis)
            self.views[node] = self.new_view(tuple(value.shape), strides)
            if strides != tuple(value.stride()):
                self._laid.add(node)
        return self.views[node]

    def set(self, node: Node, at: View) -> None:
        """Say where a value lies; torch may have told another order."""
        self.views[node] = at
        if at.strides != tuple(node.meta["val"].stride()):
            self._laid.add(node)
