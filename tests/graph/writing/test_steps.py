"""The bucket in the graph is the bucket of the numerics, on both sides of every edge."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_deploy.graph.writing.builder import replace_uses
from dq_deploy.graph.writing.steps import BUCKET, StepTables
from dq_deploy.numerics import step_bucket

FLOAT = ir.TensorType(ir.DataType.FLOAT)


def model_of(edges: np.ndarray, table: np.ndarray):
    timestep = ir.Value(name="timestep", type=FLOAT, shape=ir.Shape(["B"]))
    node = ir.node("Identity", [timestep])
    node.outputs[0].name, node.outputs[0].type = "y", FLOAT
    graph = ir.Graph([timestep], [node.outputs[0]], nodes=[node], opset_imports={"": 21}, name="steps")
    steps = StepTables(graph, edges)
    value = steps.scalar(table, 2)
    steps.scalar(table + 1, 2)
    steps.finish()
    replace_uses(node.outputs[0], value)
    proto = ir.to_proto(ir.Model(graph, ir_version=10))
    proto.graph.output.add().name = BUCKET
    return proto


def session_of(edges: np.ndarray, table: np.ndarray):
    proto = model_of(edges, table)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(0, 1000, width=32), max_size=30, unique=True))
def test_every_edge_counts_from_its_own_value_on(values):
    edges = np.sort(np.array(values, np.float32))
    table = np.arange(len(edges) + 1, dtype=np.float32)
    around = [edges, np.nextafter(edges, np.float32(-1)), np.nextafter(edges, np.float32(2000))]
    timestep = np.concatenate([*around, np.array([0, 999, 1e9], np.float32)])
    row, bucket = session_of(edges, table).run(["y", BUCKET], {"timestep": timestep})
    expected = step_bucket(timestep, edges)
    np.testing.assert_array_equal(bucket, expected)
    np.testing.assert_array_equal(row[:, 0], table[expected])


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_without_edges_every_timestep_has_the_one_bucket(engine):
    library = pytest.importorskip(engine)
    data = model_of(np.empty(0, np.float32), np.array([7], np.float32)).SerializeToString()
    timestep = np.array([0, 1e-38, 999, 3.4e38], np.float32)
    if engine == "onnxruntime":
        session = library.InferenceSession(data, providers=["CPUExecutionProvider"])
        row, bucket = session.run(["y", BUCKET], {"timestep": timestep})
    else:
        row, bucket = library.Core().compile_model(library.Core().read_model(data), "CPU")({0: timestep}).values()
    np.testing.assert_array_equal(bucket, 0)
    np.testing.assert_array_equal(row, 7)
