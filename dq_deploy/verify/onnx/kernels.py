"""The engine's own account of its kernels, whichever engine it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

from dq_deploy.errors import FileProblemError
from dq_deploy.manifest.values import ManifestPart
from dq_deploy.record import Layer
from dq_deploy.verify.layers.attestation import INTEGER_TYPES, MISSING, Kernel, joined_kernel, product_names
from dq_deploy.verify.onnx.instrument import ShippedGraph, initializer
from dq_deploy.verify.onnx.optimized_graph import OptimizedGraph, saturation, type_name

_PRODUCTS = ("Convolution", "FullyConnected", "MatMul", "Deconvolution", "GroupConvolution")


class KernelGraph(Protocol):
    """Tells which kernel multiplies a part of a layer."""

    def kernel(self, entry: ManifestPart, layer: Layer, part_index: int) -> Kernel:
        """What multiplies one part of a layer."""
        ...

    def is_integer(self, entry: ManifestPart) -> bool:
        """Whether every product of a part takes two integer operands."""
        ...


def read_kernels(shipped: ShippedGraph, path: Path) -> KernelGraph:
    """The graph an engine wrote of itself when it was opened with `optimized_model_path`.

    Args:
        shipped: the engine's file; OpenVINO's graph does not hold the weights.
        path: what the engine wrote.
    """
    if shipped.engine == "openvino":
        return OpenVinoGraph(path, shipped)
    if not shipped.optimize:
        return DeclaredGraph(shipped)
    return OptimizedGraph(path)


class DeclaredGraph:
    """What the graph for another engine asks for: the types in front of each product's DequantizeLinear nodes.

    Args:
        shipped: the ONNX file.
    """

    def __init__(self, shipped: ShippedGraph) -> None:
        self._shipped = shipped

    def kernel(self, entry: ManifestPart, layer: Layer, part_index: int) -> Kernel:
        """What the graph asks for; never integer, for it does not say what runs."""
        name = entry.node or ""
        node = self._shipped.node(name, name)
        if node is None or len(node.input) < 2:
            return MISSING
        operands = self._held(node.input[0]), self._held(node.input[1])
        return Kernel(op=f"{node.op_type} in the graph", operands=operands, declared=True)

    def is_integer(self, entry: ManifestPart) -> bool:
        """False: a graph does not say what runs."""
        return False

    def _held(self, name: str) -> str:
        """Element type in front of the DequantizeLinear that makes a tensor."""
        node = self._shipped.producer.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return "float"
        source: str = node.input[0]
        tensor = next((t for t in self._shipped.proto.graph.initializer if t.name == source), None)
        return type_name(tensor.data_type) if tensor is not None else "int8"


class OpenVinoGraph:
    """OpenVINO's runtime graph; each of its nodes names the ONNX nodes it stands for.

    Args:
        path: JSON of `OpenVinoRunner.runtime_graph`.
        shipped: the ONNX file, for the weights.
    """

    def __init__(self, path: Path, shipped: ShippedGraph) -> None:
        try:
            nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
        except (OSError, ValueError, KeyError) as error:
            raise FileProblemError(f"OpenVINO's runtime graph {path} cannot be read: {error}") from error
        self._shipped = shipped
        # a product whose scale of 1 was taken out of it goes by another name
        self._node_of = {
            name.removesuffix("/DequantizationMultiply"): node
            for node in nodes
            if node["type"] in _PRODUCTS
            for name in node["originals"]
        }

    def kernel(self, entry: ManifestPart, layer: Layer, part_index: int) -> Kernel:
        """What multiplies one part of a layer."""
        found = []
        for name in product_names(entry):
            node, source = self._node_of.get(name), self._shipped.node(name, name)
            if node is None or source is None or len(node["operands"]) < 2:
                return MISSING
            operands = (str(node["operands"][0]), str(node["operands"][1]))
            danger = ""
            if all(kind in INTEGER_TYPES for kind in operands):
                weight = initializer(self._shipped.proto, source.input[1], self._shipped.path.parent)
                danger = saturation(operands, weight, source.op_type == "Conv", entry, layer, part_index)
            found.append(Kernel(op=f"{node['type']} {node['kernel']}", operands=operands, saturation=danger))
        return joined_kernel(found)

    def is_integer(self, entry: ManifestPart) -> bool:
        """Whether every product of a part takes two integer operands."""
        nodes = [self._node_of.get(name) for name in product_names(entry)]
        return all(node is not None and all(kind in INTEGER_TYPES for kind in node["operands"][:2]) for node in nodes)
