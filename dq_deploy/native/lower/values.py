"""Where the values of a traced graph lie in the program's buffers, and the ops emitted so far."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from dq_deploy.errors import ModelError
from dq_deploy.native.lower import fusion
from dq_deploy.native.program import views
from dq_deploy.native.program.constants import constant_of
from dq_deploy.native.program.program import Buffer, Op, View
from dq_deploy.native.trace.graph import TracedGraph

aten = torch.ops.aten


DTYPES = (
    *("float32", "float16", "float64", "complex64", "complex128", "int64", "int32", "int16", "int8", "uint8", "bool"),
    "bfloat16",
)
"""Of values; kernels take float32 alone, the others are the host's. Numpy has no bfloat16: float32 holds its values."""
MAX_AXES = 6
"""Of what a kernel copies."""


_NOT_CORRECTLY_ROUNDED = ("exp", "log", "sin", "cos", "tan", "tanh", "pow", "sigmoid", "erf", "softmax", "sum")
"""Float32 operations whose last bit differs between CPUs; what they make of constants is computed in float64."""


_FILLS: Mapping[Any, Callable[[Sequence[Any]], Any]] = {
    aten.zeros.default: lambda _: 0,
    aten.zeros_like.default: lambda _: 0,
    aten.new_zeros.default: lambda _: 0,
    aten.ones.default: lambda _: 1,
    aten.ones_like.default: lambda _: 1,
    aten.new_ones.default: lambda _: 1,
    aten.full.default: lambda args: args[1],
    aten.full_like.default: lambda args: args[1],
    aten.new_full.default: lambda args: args[2],
}
"""The number that an operation fills a value with, by its arguments."""


def _folded(node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """What an operation gives for constants, the same on every CPU: in float64, rounded once."""
    if str(node.target).split(".")[1] not in _NOT_CORRECTLY_ROUNDED or node.meta["val"].dtype != torch.float32:
        return node.target(*args, **kwargs)

    def wide(value: Any) -> Any:
        return value.double() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value

    result: torch.Tensor = node.target(*(wide(a) for a in args), **{k: wide(a) for k, a in kwargs.items()})
    return result.to(torch.float32)


def dtype_name(dtype: torch.dtype) -> str:
    """Numpy's name of the type that holds values of one of torch's.

    Raises:
        ModelError: none does.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ModelError(f"a value is {name}, expected one of {', '.join(DTYPES)}; keep the model in float32")
    return "float32" if name == "bfloat16" else name


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

    def __init__(self, traced: TracedGraph, dependent: Collection[str] = ()) -> None:
        """Take a traced graph.

        Args:
            traced: the graph.
            dependent: names of the nodes that are other ones for another batch.
        """
        self.graph, self._names, self._dependent = traced.graph, traced.names, frozenset(dependent)
        self.views: dict[Node, View] = {}
        self.buffers: list[Buffer] = []
        self.ops: list[Op] = []
        self.constants: dict[str, dict[str, Any]] = {}
        self.done: set[Node] = set()
        self._folded: dict[Node, torch.Tensor] = {
            node: traced.constants[node.target]
            for node in self.graph.graph.nodes
            if node.op == "get_attr" and node.target in traced.constants and node.name not in self._dependent
        }
        self._copies: dict[tuple[View, tuple[int, ...]], View] = {}
        self._laid: set[Node] = set()  # values that lie in another order than torch gave them

    def fresh(self, node: Node) -> View:
        """A new buffer for a value: images channels last, everything else as torch lays it out."""
        value = node.meta["val"]
        shape, strides = tuple(value.shape), tuple(value.stride())
        if value.ndim == 4:
            strides = views.channels_last_strides(shape, 1)
        elif not views.is_dense(shape, strides):
            strides = views.channels_last_strides(shape, -1)
        if strides != tuple(value.stride()):
            self._laid.add(node)
        return self.new_view(shape, strides, dtype_name(value.dtype))

    def fresh_like(self, node: Node, given: Sequence[View]) -> View:
        """A new buffer for a value of four axes, which lie in the order of what it is made of."""
        value = node.meta["val"]
        found = (views.dense_in_order_of(at) for at in given if len(at.sizes) == value.ndim)
        strides = next((s for s in found if s is not None), None) if value.ndim == 4 else None
        if strides is None:
            return self.fresh(node)
        own = views.dense_in_order_of(View(buffer="", offset=0, sizes=tuple(value.shape), strides=strides))
        if own != tuple(value.stride()):
            self._laid.add(node)
        return self.new_view(tuple(value.shape), own or strides, dtype_name(value.dtype))

    def new_view(self, sizes: Sequence[int], strides: Sequence[int], dtype: str = "float32") -> View:
        """A new buffer that holds these sizes at these strides."""
        extent = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        whole = sizes[0] * strides[0] if sizes else 1  # in proportion to the batch where rows have gaps too
        self.buffers.append(Buffer(elements=max(extent, whole), dtype=dtype))
        return View(buffer=len(self.buffers) - 1, offset=0, sizes=tuple(sizes), strides=tuple(strides))

    def view(self, node: Node) -> View:
        """Where the value of a node lies; parameters and folded values are named."""
        if node in self.views:
            return self.views[node]
        value = node.meta["val"] if "val" in node.meta else getattr(self.graph, node.target)
        if node in self._folded:
            return self._constant(node, self._folded[node])
        if node.op == "get_attr":
            if node.target not in self._names:
                raise ModelError(f"a tensor {node.target} of the denoiser differs with the batch, expected one value")
            name = self._names[node.target]
        else:
            raise ModelError(f"operation {node.target} is used before it was lowered")
        self.views[node] = View(buffer=name, offset=0, sizes=tuple(value.shape), strides=tuple(value.stride()))
        return self.views[node]

    def _constant(self, node: Node, value: torch.Tensor) -> View:
        """A value that is known now, held by the program."""
        name, shape, stored = f"folded.{node.name}", tuple(value.shape), views.stored_strides(value.shape)
        plain = value.resolve_conj().resolve_neg().cpu()
        held = plain.float() if plain.dtype == torch.bfloat16 else plain
        self.constants[name] = constant_of(held.numpy())
        self.views[node] = View(buffer=name, offset=0, sizes=shape, strides=stored)
        if not views.lie_alike(stored, tuple(node.meta["val"].stride()), shape):
            self._laid.add(node)
        return self.views[node]

    def emit(self, kind: str, reads: Mapping[str, View], writes: Mapping[str, View], **attributes: Any) -> None:
        """Append an op; one that writes nothing is none."""
        if all(0 in view.sizes for view in writes.values()):
            return
        self.ops.append(Op(kind=kind, reads=dict(reads), writes=dict(writes), attributes=attributes))

    def copied(self, at: View, strides: Sequence[int], dtype: torch.dtype = torch.float32) -> View:
        """A value at other strides; a second copy of the same is the first."""
        key = (at, tuple(strides))
        if key not in self._copies:
            held = dtype_name(dtype)
            y = self.new_view(at.sizes, strides, held)
            if held == "float32" and len(at.sizes) <= MAX_AXES:
                self.emit("elementwise", {"a": at}, {"y": y}, function="copy", scalar=0.0)
            else:
                clone = {"function": "clone.default", "args": [{"read": "x0"}], "kwargs": {}, "compute": held}
                self.emit("host", {"x0": at}, {"y": y}, **clone)
            self._copies[key] = y
        return self._copies[key]

    def solid(self, node: Node) -> View:
        """The view of a parameter, or of what stands for one, as kernels read it: all of it, as it is stored.

        Raises:
            ModelError: it is not float32.
        """
        at, dtype = self.view(node), fusion.value_of(self.graph, node).dtype
        if dtype != torch.float32:
            raise ModelError(f"{at.buffer} is {dtype}, expected float32 where a kernel reads a parameter")
        wanted = views.stored_strides(at.sizes)
        return at if views.lie_alike(at.strides, wanted, at.sizes) else self.copied(at, wanted)

    def find_view(self, node: Node) -> bool:
        """Whether a node's value is a view of one of its inputs; then it lies where that lies."""
        base = fusion.viewed(node)
        if base is None:
            return False
        if base.op != "get_attr" and base not in self.views and base not in self._folded:
            return base in self.done
        self.view(base)
        seen = self.through(node, base, self.views[base], laid=base in self._laid)
        if seen is None:  # it splits what lies in another order here: copy to torch's order
            origin = fusion.value_of(self.graph, base)
            self._laid.remove(base)
            self.views[base] = self.copied(self.views[base], tuple(origin.stride()), origin.dtype)
            return self.find_view(node)
        self.views[node] = seen
        if base in self._laid:
            self._laid.add(node)
        return True

    def through(self, node: Node, base: Node, at: View, *, laid: bool) -> View | None:
        """Where a view of `base` lies if that lies at `at`; None where only a copy in torch's order shows it.

        Args:
            node: the view.
            base: what it is a view of.
            at: where that lies.
            laid: whether it lies there in another order than torch's.
        """
        value, origin = node.meta["val"], fusion.value_of(self.graph, base)
        if value.dtype != origin.dtype:
            raise ModelError(f"operation {node.target} reads {origin.dtype} as {value.dtype}, expected one type")
        moved = int(value.storage_offset()) - int(origin.storage_offset())
        told = View(buffer=at.buffer, offset=moved, sizes=tuple(value.shape), strides=tuple(value.stride()))
        seen = views.restrided(told, origin.stride(), at.strides, at.sizes) if laid else told
        return None if seen is None else replace(seen, offset=at.offset + seen.offset)

    def chained(self, node: Node) -> View | None:
        """Where a view of views lies, though nothing said so yet; None where it takes a copy."""
        if node in self.views:
            return self.views[node]
        chain = [node]
        while chain[-1] not in self.views:
            base = fusion.viewed(chain[-1])
            if base is None:
                return None
            chain.append(base)
        laid, at = chain[-1] in self._laid, self.views[chain[-1]]
        for base, view in zip(chain[:0:-1], chain[-2::-1], strict=True):
            found = self.through(view, base, at, laid=laid)
            if found is None:
                return None
            at = found
        return at

    def fold(self, node: Node) -> bool:
        """Compute now what depends on no input, no parameter and no batch; of a fill, one element."""
        number_of = _FILLS.get(node.target)
        number = None if number_of is None else number_of(node.args)
        if isinstance(number, (int, float)):
            self._fill(node, number)
            return True
        if node.name in self._dependent:
            return False
        if any(given not in self._folded for given in node.all_input_nodes):
            return False
        if not isinstance(node.meta.get("val"), torch.Tensor) or node.target is operator.getitem:
            return False
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise ModelError(f"operation {node.target} draws random numbers inside the denoiser, expected none")
        arguments = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: self._folded[n])
        self._folded[node] = _folded(node, *arguments)
        return True

    def _fill(self, node: Node, number: float) -> None:
        """One number at every place of a value."""
        shape = tuple(node.meta["val"].shape)
        self.set(node, replace(self.number(node, number), sizes=shape, strides=(0,) * len(shape)))

    def number(self, node: Node, number: float) -> View:
        """A number of an operation as a value without axes."""
        name = f"folded.{node.name}"
        self.constants[name] = constant_of(np.full((1,), number, dtype_name(node.meta["val"].dtype)))
        return View(buffer=name, offset=0, sizes=(), strides=())

    def strides_of(self, node: Node) -> tuple[int, ...]:
        """How a value lies, or will lie where it is not lowered yet."""
        return self.views[node].strides if node in self.views else tuple(node.meta["val"].stride())

    def dense(self, node: Node, axis: int) -> View:
        """The view of a value with adjacent channels, on `axis`, and evenly spaced pixels; copied if it is not so."""
        at, value = self.view(node), fusion.value_of(self.graph, node)
        if views.has_even_rows(at, axis) and value.dtype == torch.float32:
            return at
        order = views.channels_last_strides(tuple(value.shape), axis)
        if value.dtype != torch.float32:
            raise ModelError(f"a kernel would read {value.dtype}, expected float32; keep the model in float32")
        return self.copied(at, order)

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
