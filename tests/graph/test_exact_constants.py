"""Numbers that are nearly 0 or 1 come through an optimizer that would take them for it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnxscript import optimizer

from dq_deploy.graph.exact_constants import ConstantsInFloat64, near_numbers_kept

FLOAT = ir.TensorType(ir.DataType.FLOAT)


def model_of(op: str, number: float, *, as_node: bool) -> ir.Model:
    x = ir.Value(name="x", type=FLOAT, shape=ir.Shape([4]))
    tensor = ir.tensor(np.array(number, np.float32), name="number")
    nodes = []
    value = ir.Value(name="number", type=FLOAT, shape=ir.Shape([]), const_value=tensor)
    if as_node:
        nodes.append(ir.node("Constant", [], {"value": tensor}, outputs=[ir.Value(name="number", type=FLOAT)]))
        value = nodes[0].outputs[0]
    nodes.append(ir.node(op, [x, value]))
    nodes[-1].outputs[0].name, nodes[-1].outputs[0].type = "y", FLOAT
    held = [] if as_node else [value]
    graph = ir.Graph([x], nodes[-1].outputs, nodes=nodes, initializers=held, opset_imports={"": 21}, name="near")
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("as_node", [True, False])
@pytest.mark.parametrize(("op", "number"), [("Add", 1e-15), ("Mul", 1.0000099)])
def test_a_number_that_is_nearly_nothing_stays(op, number, as_node):
    model = model_of(op, number, as_node=as_node)
    with near_numbers_kept(model):
        optimizer.optimize_ir(model)
    assert [node.op_type for node in model.graph] == [op]
    kept = next(value for value in model.graph.initializers.values())
    assert kept.const_value is not None
    assert kept.const_value.numpy() == np.float32(number)


def test_a_part_of_a_constant_that_is_split_is_computed_in_float64():
    table = np.linspace(0.1, 3, 6, dtype=np.float32)
    held = ir.Value(name="table", type=FLOAT, shape=ir.Shape([6]), const_value=ir.tensor(table, name="table"))
    sizes = ir.Value(
        name="sizes",
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape([2]),
        const_value=ir.tensor(np.array([2, 4], np.int64), name="sizes"),
    )
    second = ir.Value(
        name="second",
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape([]),
        const_value=ir.tensor(np.array(1, np.int64), name="second"),
    )
    split = ir.node("SplitToSequence", [held, sizes])
    part = ir.node("SequenceAt", [split.outputs[0], second])
    sine = ir.node("Sin", [part.outputs[0]])
    x = ir.Value(name="x", type=FLOAT, shape=ir.Shape([4]))
    total = ir.node("Add", [x, sine.outputs[0]])
    for node, name in ((split, "parts"), (part, "part"), (sine, "sine"), (total, "y")):
        node.outputs[0].name = name
    total.outputs[0].type = FLOAT
    graph = ir.Graph(
        [x],
        total.outputs,
        nodes=[split, part, sine, total],
        initializers=[held, sizes, second],
        opset_imports={"": 21},
        name="split",
    )
    model = ir.Model(graph, ir_version=10)
    assert ConstantsInFloat64().apply(model).modified
    kept = model.graph.initializers["sine/constant"].const_value
    assert kept is not None
    np.testing.assert_array_equal(kept.numpy(), np.sin(table[2:].astype(np.float64)).astype(np.float32))
