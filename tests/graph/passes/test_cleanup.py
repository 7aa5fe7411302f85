"""Equal constants of a graph are stored once, and types of inner tensors can be left out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from dq_deploy.graph.passes.cleanup import EqualConstantsOnce, ForgetTypes

ONES = np.ones(3, np.float32)


def constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)


def graph_of(*constants: ir.Value, outputs: int = 0) -> ir.Model:
    """A graph that reads each constant once; the last `outputs` of them are its outputs."""
    node = ir.node("Concat", list(constants), attributes={"axis": 0})
    node.outputs[0].name = "out"
    ends = [node.outputs[0], *constants[len(constants) - outputs :]]
    graph = ir.Graph([], ends, nodes=[node], initializers=constants, opset_imports={"": 21}, name="constants")
    return ir.Model(graph, ir_version=10)


def read(model: ir.Model) -> list[str]:
    return [str(value.name) for value in next(iter(model.graph)).inputs if value is not None]


def test_equal_constants_are_one_and_the_name_that_a_pass_gave_stays():
    model = graph_of(constant("val_1", ONES), constant("dq/a", ONES.copy()), constant("val_2", 2 * ONES))
    assert EqualConstantsOnce().apply(model).modified
    assert read(model) == ["dq/a", "dq/a", "val_2"]
    assert sorted(model.graph.initializers) == ["dq/a", "val_2"]


@pytest.mark.parametrize("other", [ONES.view(np.int32), ONES[None], -ONES], ids=["type", "shape", "content"])
def test_constants_that_differ_stay(other):
    model = graph_of(constant("a", ONES), constant("b", other))
    assert not EqualConstantsOnce().apply(model).modified
    assert read(model) == ["a", "b"]


def test_a_constant_that_is_an_output_keeps_its_name():
    model = graph_of(constant("a", ONES), constant("b", ONES.copy()), outputs=1)
    assert not EqualConstantsOnce().apply(model).modified
    assert [value.name for value in model.graph.outputs] == ["out", "b"]


def test_types_between_the_nodes_go_and_those_of_inputs_and_outputs_stay():
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B"]))
    first = ir.node("Neg", [x])
    last = ir.node("Neg", [first.outputs[0]])
    for name, node in (("inner", first), ("y", last)):
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, x.type, x.shape
    graph = ir.Graph([x], last.outputs, nodes=[first, last], opset_imports={"": 21}, name="types")
    model = ir.Model(graph, ir_version=10)
    assert ForgetTypes().apply(model).modified
    proto = ir.to_proto(model)
    assert list(proto.graph.value_info) == []
    assert [value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)] == [1, 1]
    assert not ForgetTypes().apply(model).modified
