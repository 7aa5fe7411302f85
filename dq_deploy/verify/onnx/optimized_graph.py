"""ONNX Runtime's optimized graph: which kernel really runs for each layer, and why it may not be exact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.manifest.values import ManifestPart
from dq_deploy.numerics import worst_pair_product
from dq_deploy.record import Layer
from dq_deploy.verify.layers.attestation import (
    INTEGER_TYPES,
    MISSING,
    PAIR_LIMIT,
    Kernel,
    joined_kernel,
    product_names,
)
from dq_deploy.verify.onnx.instrument import initializer

if TYPE_CHECKING:
    import onnx

OPERANDS = {
    "MatMulIntegerToFloat": (0, 1),
    "MatMulInteger": (0, 1),
    "ConvInteger": (0, 1),
    "QLinearConv": (0, 3),
    "QLinearMatMul": (0, 3),
    "QGemm": (0, 3),
}
"""Positions of activations and weights in integer kernels; every other product has them at (0, 1)."""

_SAME_TYPE = (
    "Reshape", "Transpose", "Gather", "Concat", "Expand", "Slice", "Split", "Pad", "Identity", "Squeeze", "Unsqueeze",
    "Flatten", "MaxPool", "Max", "Min", "ReorderInput", "ReorderOutput", "GatherND", "Tile",
)  # fmt: skip

FLOAT_PRODUCTS = (
    "MatMul",
    "Gemm",
    "Conv",
    "FusedMatMul",
    "FusedGemm",
    "FusedConv",
    "MatMulNBits",
    "DynamicQuantizeMatMul",
)
"""Kernels that multiply floats: what a layer's node becomes when it falls back."""


class OptimizedGraph:
    """ONNX Runtime's optimized graph, with the type of every tensor it tells of.

    Args:
        path: file written by `SessionOptions.optimized_model_filepath`.
    """

    def __init__(self, path: Path) -> None:
        import onnx

        self.folder = path.parent
        self.proto = onnx.load(str(path), load_external_data=False)
        self._by_name = {node.name: node for node in self.proto.graph.node if node.name}
        # layout optimizations append a running number to a node's name
        self._renamed = {
            node.name.split("_token_")[0]: node for node in self.proto.graph.node if "_token_" in node.name
        }
        self._producer = {name: node for node in self.proto.graph.node for name in node.output if name}
        self._types = _declared_types(self.proto)

    def type_of(self, name: str) -> str:
        """Element type of a tensor as numpy calls it, `unknown` where nothing in the graph tells it."""
        if name not in self._types:
            node = self._producer.get(name)
            self._types[name] = "unknown" if node is None else self._type_made_by(node)
        return self._types[name]

    def _type_made_by(self, node: onnx.NodeProto) -> str:
        attributes = {a.name: a for a in node.attribute}
        if node.op_type in _SAME_TYPE:
            return self.type_of(node.input[0])
        if node.op_type == "Cast":
            return type_name(attributes["to"].i)
        if node.op_type == "Constant" and "value" in attributes:
            return type_name(attributes["value"].t.data_type)
        if node.op_type == "QuantizeLinear":
            return self.type_of(node.input[2]) if len(node.input) > 2 and node.input[2] else "uint8"
        if node.op_type in ("QLinearConv", "QLinearMatMul"):
            return self.type_of(node.input[7])
        return "float32" if node.op_type in ("DequantizeLinear", "MatMulIntegerToFloat") else "unknown"

    def node(self, name: str, output: str) -> onnx.NodeProto | None:
        """The node of a product: by its name, by its output, or the product behind what stands there now."""
        node = self._by_name.get(name) or self._renamed.get(name) or self._producer.get(output)
        for _ in range(8):
            if node is None or node.op_type in OPERANDS or node.op_type in FLOAT_PRODUCTS:
                return node
            node = self._producer.get(node.input[0]) if node.input else None
        return None

    def kernel(self, entry: ManifestPart, layer: Layer, part_index: int) -> Kernel:
        """What multiplies one part of a layer.

        Args:
            entry: the part's manifest entry.
            layer: the record's layer.
            part_index: index of the part.
        """
        found = []
        for name in product_names(entry):
            node = self.node(name, entry.accumulator or name)
            if node is None:
                return MISSING
            op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            first, second = OPERANDS.get(node.op_type, (0, 1))
            operands = (self.type_of(node.input[first]), self.type_of(node.input[second]))
            weight = initializer(self.proto, node.input[second], self.folder)
            danger = saturation(operands, weight, "Conv" in node.op_type, entry, layer, part_index)
            found.append(Kernel(op=op, operands=operands, saturation=danger))
        return joined_kernel(found)

    def is_integer(self, entry: ManifestPart) -> bool:
        """Whether every product of a part takes two integer operands."""
        nodes = [self.node(name, entry.accumulator or name) for name in product_names(entry)]
        return all(
            node is not None
            and node.op_type in OPERANDS
            and all(self.type_of(node.input[i]) in INTEGER_TYPES for i in OPERANDS[node.op_type])
            for node in nodes
        )


def saturation(
    operands: tuple[str, str], weight: Any, convolution: bool, entry: ManifestPart, layer: Layer, part_index: int
) -> str:
    """Why a product of u8 codes and s8 weights is not exact on every CPU, or an empty string.

    Args:
        operands: element types of codes and weights.
        weight: the engine's own, in the order in which it adds along K: [C_out, ...] of a convolution, else [K, C_out].
        convolution: which of the two.
        entry: the part's manifest entry.
        layer: the record's layer.
        part_index: index of the part.
    """
    if operands != ("uint8", "int8"):
        return ""
    if weight is None:
        return "unsafe: the engine's weights cannot be read, so saturation cannot be ruled out"
    matrix = np.asarray(weight).astype(np.int64)
    worst = worst_pair(matrix) if convolution else worst_pair(matrix.reshape(matrix.shape[-2:]).T)
    highest = highest_code(entry, layer, part_index)
    if highest * worst <= PAIR_LIMIT:
        return ""
    return (
        f"unsafe: saturates on CPUs that add u8 x s8 pairs in int16 ({highest} * {worst} = {highest * worst} > "
        f"{PAIR_LIMIT})"
    )


def worst_pair(weight: NDArray[np.int64]) -> int:
    """Largest sum of two neighbouring magnitudes along K, for any output channel and, in 4-D, either order of K."""
    return worst_pair_product(weight, 1)


def highest_code(entry: ManifestPart, layer: Layer, part_index: int) -> int:
    """Largest unsigned code the engine can hold for a part."""
    if entry.offset is None:
        return 255
    zero = layer.parts[part_index].zero_point.astype(np.int64)
    return int(min(255, max(0, layer.q_max - int(zero.min())) + entry.offset))


def _declared_types(proto: onnx.ModelProto) -> dict[str, str]:
    graph = proto.graph
    types = {v.name: type_name(v.data_type) for v in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        kind = value.type.tensor_type.elem_type
        if kind:
            types[value.name] = type_name(kind)
    return types


def type_name(kind: int) -> str:
    """ONNX element type as numpy calls it."""
    import onnx

    names = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.DOUBLE: "float64"}
    try:
        return names.get(kind) or str(onnx.TensorProto.DataType.Name(kind)).lower()
    except ValueError:
        return "unknown"
