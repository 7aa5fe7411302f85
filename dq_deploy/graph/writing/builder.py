"""Append nodes and constants to an onnx-ir graph under readable, deterministic names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dq_deploy.numerics.geometry import Padding, Window

CONTRIB_DOMAIN = "com.microsoft"


class Builder:
    """Inserts nodes in front of an anchor node; equal constants are stored once.

    Args:
        graph: graph that is edited in place.
        before: node in front of which everything is inserted.
        prefix: start of every node and value name, as `dq/conv_in`.
    """

    def __init__(self, graph: ir.Graph, before: ir.Node, prefix: str) -> None:
        self.graph = graph
        self.before = before
        self.prefix = prefix

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        role: str,
        *,
        domain: str = "",
        attributes: Mapping[str, int | float | str | Sequence[int]] | None = None,
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        """Insert one node with one output called `prefix/role` and return that output."""
        name = f"{self.prefix}/{role}"
        node = ir.node(op_type, inputs, attributes=dict(attributes or {}), domain=domain, name=name)
        output = node.outputs[0]
        output.name = name
        if dtype is not None:
            output.type = ir.TensorType(dtype)
        self.graph.insert_before(self.before, node)
        return output

    def constant(self, array: NDArray[np.generic] | np.generic, role: str) -> ir.Value:
        """An initializer; those of equal content are one, and those of more than 4096 elements are called by a role."""
        array = np.asarray(array, order="C")
        kind = array.dtype.newbyteorder("=")  # arrays from files are '<f4', which is the same by another name
        digest = hashlib.sha256(array.tobytes() + str((kind, array.shape)).encode()).hexdigest()[:12]
        name = f"dq/const/{digest}" if array.size <= 4096 else f"dq/const/{role}/{digest}"
        return self.tensor(ir.tensor(array, name=name))

    def tensor(self, tensor: ir.TensorProtocol) -> ir.Value:
        """An initializer from an onnx-ir tensor, by the tensor's name."""
        name = tensor.name
        assert name is not None
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def signed_weight(self, weight: NDArray[np.integer], bits: int) -> ir.Value:
        """Weights as int8; of 4 bits and fewer stored in four bits, with a Cast that engines fold when they load."""
        weight = np.ascontiguousarray(weight.astype(np.int8))
        name = f"{self.prefix}/weight"
        if bits > 4 or weight.min(initial=0) < -8 or weight.max(initial=0) > 7:
            return self.tensor(ir.tensor(weight, name=name))
        packed = self.tensor(ir.tensor(weight, dtype=ir.DataType.INT4, name=name))
        return self.op("Cast", [packed], "weight_s8", attributes={"to": int(ir.DataType.INT8)}, dtype=ir.DataType.INT8)


def convolution_attributes(window: Window) -> dict[str, list[int]]:
    """Attributes of a Conv or QLinearConv that moves like this."""
    return {
        "kernel_shape": list(window.kernel),
        "strides": list(window.stride),
        "pads": list(window.padding),
        "dilations": list(window.dilation),
    }


def image_pads(padding: Padding) -> NDArray[np.int64]:
    """Second input of the Pad that puts this around images [B, C, H, W]."""
    top, left, bottom, right = padding
    return np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)


def replace_uses(old: ir.Value, new: ir.Value) -> None:
    """Let every consumer of `old` read `new` instead; a graph output keeps its name, type and shape."""
    new.type, new.shape = old.type, old.shape
    if old.is_graph_output():
        old.name, new.name = f"{old.name}/replaced", old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
