"""An ONNX file becomes OpenVINO's own: the same names, the same bits, no weight in half precision."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dq_deploy.errors import ModelError
from dq_deploy.pipelines.layouts.openvino_ir import IR_FILE, write_ir

openvino = pytest.importorskip("openvino")

EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture
def product(tmp_path):
    """A file with one product of matrices, whose weights need all of float32."""
    weight = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["sample", "weight"], ["out_sample"])],
        "product",
        [helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["B", 8])],
        [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, ["B", 4])],
        [numpy_helper.from_array(weight, "weight")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


def test_both_files_give_the_same_bits_under_the_same_names(product):
    write_ir(product, product.parent)
    assert (product.parent / IR_FILE).with_suffix(".bin").is_file()
    sample = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    found = [
        openvino.compile_model(str(path), "CPU", EXACT)({"sample": sample})["out_sample"]
        for path in (product, product.parent / IR_FILE)
    ]
    assert np.array_equal(*found)
    operations = openvino.Core().read_model(str(product.parent / IR_FILE)).get_ops()
    kinds = {op.get_element_type().to_string() for op in operations if op.get_type_name() == "Constant"}
    assert kinds == {"f32"}


def test_a_file_that_openvino_cannot_read_is_refused_in_one_line(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match="OpenVINO cannot convert the"):
        write_ir(tmp_path / "model.onnx", tmp_path)
