"""Small graphs in the form of the TensorRT targets, and plans of them by the real builder, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

needs_builder = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs TensorRT-RTX: pip install 'dq-deploy[tensorrt-rtx]'"
)

_BUILD = """
import json, sys
import tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
for job in json.load(sys.stdin):
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(job["onnx"]), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(job["capabilities"])
    for index, name in enumerate(job["capabilities"]):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    if job["profile"]:
        profile = builder.create_optimization_profile()
        for name, shapes in job["profile"].items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    open(job["plan"], "wb").write(builder.build_serialized_network(network, config))
"""


def build_plans(jobs: list[dict[str, Any]]) -> None:
    """Build plans one after the other in one child process.

    Args:
        jobs: `onnx`, `plan`: paths; `capabilities`: as `SM80`; `profile`: input name to its three shapes.
    """
    done = subprocess.run(
        [sys.executable, "-c", _BUILD], input=json.dumps(jobs), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@dataclass
class Graph:
    """Nodes and initializers of a graph that is being written."""

    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def op(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}:0"], name=name, **attributes))
        return f"{name}:0"

    def constant(self, name: str, value: Any) -> str:
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def codes(self, x: str, name: str) -> str:
        """int8 codes of a float tensor, as the exporter writes them."""
        one, zero = self.constant("one", np.float32(1)), self.constant("zero", np.int8(0))
        m = self.constant(f"{name}/m", np.float32(0.7))
        value = self.op("Round", [self.op("Mul", [x, m], f"{name}/scaled_input")], f"{name}/rounded")
        low, high = self.constant("low", np.float32(-128)), self.constant("high", np.float32(127))
        value = self.op("Clip", [value, low, high], f"{name}/clipped")
        return self.op("QuantizeLinear", [value, one, zero], f"{name}/codes")

    def values(self, codes: str, name: str) -> str:
        return self.op("DequantizeLinear", [codes, "one", "zero"], f"{name}/code_values")

    def weight(self, name: str, shape: tuple[int, ...], axis: int, *, bits: int = 8) -> str:
        w = self.rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape)
        kind = TensorProto.INT8 if bits == 8 else TensorProto.INT4
        self.constants[f"{name}/weight"] = helper.make_tensor(f"{name}/weight", kind, shape, w.reshape(-1))
        scale = self.constant(f"{name}/weight_scale", self.rng.uniform(0.01, 0.02, shape[axis]).astype(np.float32))
        return self.op("DequantizeLinear", [f"{name}/weight", scale], f"{name}/weight_values", axis=axis)

    def linear(self, x: str, name: str, k: int, n: int, *, bits: int = 8, codes: str | None = None) -> str:
        """An integer linear layer."""
        values = self.values(codes or self.codes(x, name), name)
        y = self.op("MatMul", [values, self.weight(name, (k, n), 1, bits=bits)], f"{name}/product")
        return self.op("Mul", [y, self.constant(f"{name}/s", np.float32(0.3))], f"{name}/scaled")

    def float_linear(self, x: str, name: str, k: int, n: int) -> str:
        w = self.constant(f"{name}/weight", self.rng.standard_normal((k, n)).astype(np.float32))
        return self.op("MatMul", [x, w], f"{name}/product")

    def conv(self, x: str, name: str, c: int, n: int) -> str:
        """An integer 3x3 convolution."""
        values = self.values(self.codes(x, name), name)
        weight = self.weight(name, (n, c, 3, 3), 0)
        return self.op("Conv", [values, weight], f"{name}/product", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])

    def write(self, path: Path, shape_in: list[Any], output: str, shape_out: list[Any]) -> Path:
        self.nodes.append(helper.make_node("Identity", [output], ["y"], name="last"))
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape_in)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape_out)],
            list(self.constants.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path


def linears(path: Path, batch: Any, *, rows: int = 7) -> Path:
    """integer 64 to 96, float 96 to 40, integer 40 to 24 with 4-bit weights, three 24 to 16 on the same codes."""
    g = Graph()
    y = g.op("Relu", [g.linear("x", "first", 64, 96)], "relu")
    y = g.op("Relu", [g.float_linear(y, "second", 96, 40)], "relu2")
    y = g.op("Relu", [g.linear(y, "third", 40, 24, bits=4)], "relu3")
    codes = g.codes(y, "shared")
    parts = [g.linear(y, name, 24, 16, codes=codes) for name in "qkv"]
    y = g.op("Concat", parts, "concat", axis=2)
    return g.write(path, [batch, rows, 64], y, [batch, rows, 48])


def convolution(path: Path, batch: Any) -> Path:
    """An integer convolution, then a product of its output with itself, as attention has."""
    g = Graph()
    y = g.conv("x", "conv", 16, 32)
    y = g.op("Reshape", [y, g.constant("shape", np.array([0, 32, 16]))], "reshape")
    turned = g.op("Transpose", [y], "turn", perm=[0, 2, 1])
    return g.write(path, [batch, 16, 8, 8], g.op("MatMul", [turned, y], "attention"), [batch, 16, 16])


def weight_only(path: Path, batch: Any) -> Path:
    """A float16 linear layer whose 4-bit weights have a scale for each 16 of them."""
    g = Graph()
    x = g.op("Cast", ["x"], "half", to=TensorProto.FLOAT16)
    w = g.rng.integers(-8, 8, (32, 64))
    g.constants["wo/weight"] = helper.make_tensor("wo/weight", TensorProto.INT4, (32, 64), w.reshape(-1))
    scale = g.constant("wo/weight_scale", g.rng.uniform(0.01, 0.02, (2, 64)).astype(np.float16))
    values = g.op("DequantizeLinear", ["wo/weight", scale], "wo/weight_values", axis=0, block_size=16)
    y = g.op("MatMul", [x, values], "wo/product")
    return g.write(path, [batch, 64, 32], g.op("Cast", [y], "single", to=TensorProto.FLOAT), [batch, 64, 64])
