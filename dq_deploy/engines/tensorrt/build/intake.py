"""What can be said of an ONNX file before a builder sees it, and which layer a node belongs to after it failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from dq_deploy.errors import BuildError, FileProblemError
from dq_deploy.graph.external_data import check_data_files, data_files
from dq_deploy.manifest.values import EngineManifest

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """One node of an ONNX file.

    Attributes:
        name: the node's.
        operator: with its domain where that is not ONNX's own.
        opset: version of that domain.
        layer: name in the manifest, or the module path, or "" where neither is known.
    """

    name: str
    operator: str
    opset: int
    layer: str


def load_graph(path: Path) -> onnx.ModelProto:
    """The file without its external data.

    Raises:
        FileProblemError: not ONNX, or truncated.
    """
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's errors share no base class with onnx's
        raise FileProblemError(f"{path} is not an ONNX file or is truncated; export it again") from error


def check_onnx(path: Path, manifest: EngineManifest) -> None:
    """Refuse what a TensorRT builder would take wrongly or refuse in worse words.

    Raises:
        FileProblemError: external data that is missing or truncated.
        BuildError: a zero point TensorRT would not honour; it reads unsigned zero points of 0 as signed ones.
    """
    model = load_graph(path)
    check_data_files(path, data_files(path, model))
    zeros = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in _QUANTIZERS or len(node.input) < 3 or node.input[2] not in zeros:
            continue
        zero = zeros[node.input[2]]
        unsigned = zero.data_type in (onnx.TensorProto.UINT8, onnx.TensorProto.UINT4, onnx.TensorProto.UINT16)
        if unsigned or (not zero.external_data and np.any(numpy_helper.to_array(zero) != 0)):
            kind = onnx.TensorProto.DataType.Name(zero.data_type).lower()
            facts = facts_of(model, manifest, node)
            raise BuildError(
                f"{node.op_type} {node.name}{_of_layer(facts.layer)} has a zero point of type {kind}"
                f"{'' if unsigned else ' that is not 0'}; TensorRT takes int8 with zero point 0 only: export the "
                f'record again with dq-export `target="{manifest.target}"`'
            )


def external_data_of(path: Path) -> list[Path]:
    """Files beside an ONNX file that hold its weights."""
    return [file.path for file in data_files(path, load_graph(path))]


def find_node(path: Path, manifest: EngineManifest, *, name: str, index: int) -> NodeFacts | None:
    """The node of a builder's complaint, by its name, else by its place."""
    nodes = (model := load_graph(path)).graph.node
    found = next((node for node in nodes if name and node.name == name), None)
    if found is None and not name and 0 <= index < len(nodes):
        found = nodes[index]
    return None if found is None else facts_of(model, manifest, found)


def facts_of(model: onnx.ModelProto, manifest: EngineManifest, node: onnx.NodeProto) -> NodeFacts:
    """Operator, opset and layer of a node."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    opset = next((o.version for o in model.opset_import if o.domain in (domain, domain or "ai.onnx")), 0)
    operator = f"{domain}.{node.op_type}" if domain else node.op_type
    return NodeFacts(name=node.name, operator=operator, opset=opset, layer=_layer_of(node, manifest))


def steps_at_scales(path: Path, manifest: EngineManifest) -> list[NodeFacts]:
    """Quantizers whose scale is computed in the graph: TensorRT-RTX 1.7 crashes on them in front of a convolution."""
    model = load_graph(path)
    constant = {tensor.name for tensor in model.graph.initializer}
    constant |= {output for node in model.graph.node if node.op_type == "Constant" for output in node.output}
    return [
        facts_of(model, manifest, node)
        for node in model.graph.node
        if node.op_type in _QUANTIZERS and node.input[1] not in constant
    ]


def _layer_of(node: onnx.NodeProto, manifest: EngineManifest) -> str:
    layers = [layer.name for layer in manifest.layers]
    text = f"/{node.name}/"
    inside = [layer for layer in layers if f"/{layer}/" in text]
    if inside:
        return max(inside, key=len)
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
    pieces = [piece.strip(" '\"") for piece in scopes.strip("[]").split(",")]
    return pieces[-2] if len(pieces) >= 2 else ""


def _of_layer(layer: str) -> str:
    return f" of layer {layer}" if layer else ""
