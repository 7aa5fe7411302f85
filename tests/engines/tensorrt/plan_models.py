"""Small ONNX files with a manifest of ours, to build plans from: some fine, some that a builder refuses or dies of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dq_deploy.graph.onnx_file import MANIFEST_KEY

SIZE = 64
"""Channels of the models of linears."""

ZERO = np.int8(0)


def manifest_of(inputs: Sequence[dict[str, Any]], layers: Sequence[str]) -> dict[str, Any]:
    """The least manifest that a build reads."""
    return {
        "format": "dq_deploy.manifest",
        "version": 1,
        "target": "tensorrt-rtx",
        "mode": "exact",
        "options": {"target": "tensorrt-rtx", "mode": "exact", "float_type": "float32", "conv": "gemm"},
        "inputs": list(inputs),
        "outputs": [],
        "model_config": {},
        "scheduler_config": None,
        "timesteps": [],
        "step_edges": [],
        "layers": [{"name": name, "integer": True, "parts": []} for name in layers],
    }


def tensor(name: str, value: Any, dtype: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def quantized(source: str, prefix: str, *, scale: str = "one", zero: str = "zero") -> list[onnx.NodeProto]:
    """Round, quantize and dequantize `source` to `prefix/dq`."""
    return [
        helper.make_node("Round", [source], [f"{prefix}/round"], name=f"{prefix}/round"),
        helper.make_node("QuantizeLinear", [f"{prefix}/round", scale, zero], [f"{prefix}/q"], name=f"{prefix}/q"),
        helper.make_node("DequantizeLinear", [f"{prefix}/q", scale, zero], [f"{prefix}/dq"], name=f"{prefix}/dq"),
    ]


def constants(zero: Any = ZERO) -> list[onnx.TensorProto]:
    return [tensor("one", 1, np.float32), numpy_helper.from_array(np.asarray(zero), "zero")]


def weight(name: str, shape: tuple[int, ...], axis: int, seed: int) -> tuple[list[onnx.TensorProto], onnx.NodeProto]:
    """An int8 weight with one scale for each output channel, dequantized to `name/dq`."""
    codes = np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)
    tensors = [
        tensor(f"{name}/codes", codes, np.int8),
        tensor(f"{name}/scale", np.full(shape[axis], 1 / (73.0 * np.sqrt(codes.size / shape[axis]))), np.float32),
        tensor(f"{name}/zero", np.zeros(shape[axis]), np.int8),
    ]
    inputs = [f"{name}/codes", f"{name}/scale", f"{name}/zero"]
    return tensors, helper.make_node("DequantizeLinear", inputs, [f"{name}/dq"], axis=axis, name=f"{name}/dq")


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    tensors: Sequence[onnx.TensorProto],
    manifest: dict[str, Any] | None,
    *,
    inputs: Sequence[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
    domains: Sequence[str] = (),
    external: bool = False,
) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, [output], tensors)
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if manifest is not None:
        model.metadata_props.add(key=MANIFEST_KEY, value=json.dumps(manifest))
    if external:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=64)
    else:
        onnx.save(model, path)
    return path


def linear_values(output: str) -> dict[str, Any]:
    return {
        "inputs": [helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["B", SIZE])],
        "output": helper.make_tensor_value_info(output, TensorProto.FLOAT, ["B", SIZE]),
    }


def linear_manifest(layers: Sequence[str] = ("mid.to_q",), **changes: Any) -> dict[str, Any]:
    return {**manifest_of([{"name": "sample", "dtype": "float32", "shape": ["B", SIZE]}], layers), **changes}


def linears(path: Path, count: int = 1, *, external: bool = False, **changes: Any) -> Path:
    """A chain of `count` int8 linears of different widths, from [B, 64] to [B, 64]; a build of 200 takes seconds."""
    nodes, tensors, layers, last, size = [], constants(), [], "sample", SIZE
    for index in range(count):
        name = f"mid.{index}" if count > 1 else "mid.to_q"
        width = SIZE if index == count - 1 else SIZE + 8 * (index + 1)
        more, dequantize = weight(f"dq/{name}/weight", (size, width), 1, index)
        out = f"dq/{name}/out"
        matmul = helper.make_node("MatMul", [f"dq/{name}/dq", f"dq/{name}/weight/dq"], [out], name=f"dq/{name}/matmul")
        nodes += [*quantized(last, f"dq/{name}"), dequantize, matmul]
        tensors += more
        layers.append(name)
        last, size = out, width
    return write(path, nodes, tensors, linear_manifest(layers, **changes), external=external, **linear_values(last))


def matmul_integer(path: Path) -> Path:
    """ONNX Runtime's integer product, which TensorRT's parser refuses."""
    nodes = [
        *quantized("sample", "dq/mid.to_q")[:2],
        helper.make_node("MatMulInteger", ["dq/mid.to_q/q", "w"], ["sum"], name="dq/mid.to_q/matmul"),
        helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.FLOAT, name="cast"),
    ]
    tensors = [*constants(), tensor("w", np.ones((SIZE, SIZE)), np.int8)]
    return write(path, nodes, tensors, linear_manifest(), **linear_values("y"))


def zero_point(path: Path, zero: Any) -> Path:
    """A quantizer with this zero point."""
    more, dequantize = weight("dq/mid.to_q/weight", (SIZE, SIZE), 1, 0)
    matmul = helper.make_node("MatMul", ["dq/mid.to_q/dq", "dq/mid.to_q/weight/dq"], ["y"], name="dq/mid.to_q/matmul")
    nodes = [*quantized("sample", "dq/mid.to_q"), dequantize, matmul]
    return write(path, nodes, [*constants(zero), *more], linear_manifest(), **linear_values("y"))


def unknown_operator(path: Path) -> Path:
    """An operator no plugin serves, in a node that only its scope names."""
    node = helper.make_node("FusedThing", ["sample"], ["y"], name="node_17", domain="com.microsoft")
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'mid_block', 'mid_block.attn', 'fused']")
    return write(path, [node], [], linear_manifest(), domains=["com.microsoft"], **linear_values("y"))


def crashing(path: Path) -> Path:
    """A convolution behind a quantizer whose scale is looked up by step: TensorRT-RTX 1.7 dies of it."""
    more, dequantize = weight("dq/conv_in/weight", (16, 16, 3, 3), 0, 0)
    nodes = [
        helper.make_node("Gather", ["table", "step"], ["scale"], name="gather"),
        *quantized("sample", "dq/conv_in", scale="scale"),
        dequantize,
        helper.make_node(
            "Conv", ["dq/conv_in/dq", "dq/conv_in/weight/dq"], ["y"], pads=[1] * 4, name="dq/conv_in/conv"
        ),
    ]
    tensors = [*constants(), tensor("table", np.linspace(0.01, 0.1, 5), np.float32), *more]
    manifest = manifest_of(
        [
            {"name": "sample", "dtype": "float32", "shape": ["B", 16, 8, 8]},
            {"name": "step", "dtype": "int64", "shape": []},
        ],
        ["conv_in"],
    )
    inputs = [
        helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["B", 16, 8, 8]),
        helper.make_tensor_value_info("step", TensorProto.INT64, []),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 16, 8, 8])
    return write(path, nodes, tensors, manifest, inputs=inputs, output=output)
