"""How much of an engine's work runs in integers, from its own optimized graph and its manifest alone."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dq_deploy.engines import open_engine
from dq_deploy.graph.onnx_file import read_manifest
from dq_deploy.verify.attestation import INTEGER_TYPES, OPERANDS, OptimizedGraph


@dataclass(frozen=True, kw_only=True)
class Attestation:
    """Shares of the float model's MACs whose kernels take two integer operands.

    Attributes:
        integer_mac_share: of all convolutions, linear layers and attention products.
        integer_mac_share_of_quantizable: of convolutions and linear layers.
        float_layers: layers of the manifest whose kernel is not integer.
    """

    integer_mac_share: float
    integer_mac_share_of_quantizable: float
    float_layers: tuple[str, ...]


def _is_integer(graph: OptimizedGraph, part: Mapping[str, Any]) -> bool:
    node = graph.node(str(part.get("node") or ""), str(part.get("accumulator") or ""))
    if node is None or node.op_type not in OPERANDS:
        return False
    return all(graph.type_of(node.input[i]) in INTEGER_TYPES for i in OPERANDS[node.op_type])


def attest(engine_path: str | Path) -> Attestation | None:
    """Open an engine and read which kernels it really runs.

    Args:
        engine_path: exported ONNX file with its manifest.

    Returns:
        The shares, or None for an engine whose graph is read by `verify` only.

    Raises:
        FileProblemError: the engine or its manifest is missing or broken.
    """
    path = Path(engine_path)
    manifest = read_manifest(path)
    if manifest["target"] != "onnxruntime":
        return None
    with tempfile.TemporaryDirectory(prefix="dq-attest-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        with open_engine(path, optimized_model_path=optimized):
            graph = OptimizedGraph(optimized)
    macs, integer, float_layers = manifest["macs"], 0, []
    for layer in manifest["layers"]:
        if layer["parts"] and all(_is_integer(graph, part) for part in layer["parts"]):
            integer += macs["layers"][layer["name"]]
        else:
            float_layers.append(str(layer["name"]))
    return Attestation(
        integer_mac_share=integer / macs["of_all"],
        integer_mac_share_of_quantizable=integer / macs["of_quantizable"],
        float_layers=tuple(float_layers),
    )
