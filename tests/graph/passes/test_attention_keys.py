"""The tracer's long way to transpose keys of varying length becomes one operation with the same values."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper

from dq_deploy.graph.pass_contract import run_passes
from dq_deploy.graph.passes.attention_keys import KeysInOneTranspose
from dq_deploy.graph.passes.cleanup import RemoveUnused

END = 2**63 - 1


def long_form(perm=(0, 2, 1), swapped=("s1", "s0")) -> ir.Model:
    """Shape, two Slices, Reshape to three axes, Transpose, Reshape to four, as the tracer writes it."""

    def numbers(name, *values):
        return helper.make_tensor(name, TensorProto.INT64, [len(values)], list(values))

    nodes = [
        helper.make_node("Shape", ["k"], ["shape"]),
        helper.make_node("Slice", ["shape", "-1", "end"], ["s1"]),
        helper.make_node("Slice", ["shape", "-2", "-1"], ["s0"]),
        helper.make_node("Slice", ["shape", "start", "-2"], ["lead"]),
        helper.make_node("Concat", ["-1", "s0", "s1"], ["flat"], axis=0),
        helper.make_node("Reshape", ["k", "flat"], ["three"]),
        helper.make_node("Transpose", ["three"], ["turned"], perm=list(perm)),
        helper.make_node("Concat", ["lead", *swapped], ["four"], axis=0),
        helper.make_node("Reshape", ["turned", "four"], ["y"]),
        helper.make_node("Neg", ["y"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("k", TensorProto.FLOAT, ["B", 2, "n", 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["B", 2, None, None])],
        [numbers("-1", -1), numbers("-2", -2), numbers("end", END), numbers("start", -END)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def run(model: ir.Model, keys: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    text = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(text, options, providers=["CPUExecutionProvider"]).run(None, {"k": keys})[0]


def test_it_becomes_one_transpose_of_the_same_values():
    keys = np.random.default_rng(0).standard_normal((4, 2, 5, 3)).astype(np.float32)
    want = run(long_form(), keys)
    result = run_passes(long_form(), [KeysInOneTranspose(), RemoveUnused()])
    assert [node.op_type for node in result.model.graph] == ["Transpose", "Neg"]
    np.testing.assert_array_equal(run(result.model, keys), want)
    np.testing.assert_array_equal(want, -keys.transpose(0, 1, 3, 2))


def test_another_order_of_axes_or_sizes_is_left_alone():
    for changes in ({"perm": (0, 1, 2)}, {"swapped": ("s0", "s1")}):
        assert not KeysInOneTranspose().apply(long_form(**changes)).modified
