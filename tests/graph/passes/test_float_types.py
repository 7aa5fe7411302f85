"""The float part in another float type: Casts and types change, nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest

from dq_deploy.graph.pass_contract import run_passes
from dq_deploy.graph.passes.cleanup import RemoveUnused
from dq_deploy.graph.passes.float_types import FLOAT16_MAX, FloatTypes
from dq_deploy.graph.passes.tensorrt_layers import TensorRtLayers
from dq_deploy.graph.trace import MODULE_KEY
from dq_deploy.models import call_of_record, example_inputs
from dq_deploy.targets.traced_graphs import traced_float_graph
from tests.tiny import random_record, tiny_denoiser

FLOAT = ir.TensorType(ir.DataType.FLOAT)


@pytest.fixture(scope="module")
def record():
    return random_record(tiny_denoiser(classes=3))


@pytest.fixture(scope="module")
def traced(record):
    return ir.to_proto(
        traced_float_graph(record.family, record.model_config, record, call_of_record(record), instance_norms=False)
    )


def graph_of(record, traced, float_type, ranges=None):
    layers = TensorRtLayers(record, conv="gemm")
    types = FloatTypes(float_type, ranges or {}, layers.entries)
    model = run_passes(ir.from_proto(traced), [layers, RemoveUnused(), types, RemoveUnused()]).model
    return ir.to_proto(model).graph, types, layers.entries


def nodes_without_new_casts(graph):
    """(op, name, inputs, attributes) of every node, the Casts of the pass taken out again."""
    source = {n.output[0]: n.input[0] for n in graph.node if n.name.startswith("cast/")}

    def origin(name):
        while name in source:
            name = source[name]
        return name.removesuffix("/float16").removesuffix("/bfloat16")

    return [
        (
            node.op_type,
            node.name,
            [origin(name) for name in node.input],
            sorted((a.name, a.SerializeToString()) for a in node.attribute),
        )
        for node in graph.node
        if not node.name.startswith("cast/")
    ]


@pytest.mark.parametrize("float_type", ["float16", "bfloat16"])
def test_only_casts_and_types_differ_from_the_float32_graph(record, traced, float_type):
    wide, _, _ = graph_of(record, traced, "float32")
    narrow, _, _ = graph_of(record, traced, float_type)
    assert sorted(map(str, nodes_without_new_casts(narrow))) == sorted(map(str, nodes_without_new_casts(wide)))
    added = len(narrow.node) - len(wide.node)
    assert 0 < added == sum(node.op_type == "Cast" and node.name.startswith("cast/") for node in narrow.node)


def test_integer_layers_tables_step_path_and_ends_stay_float32(record, traced):
    graph, _, entries = graph_of(record, traced, "float16")
    kinds = {v.name: v.data_type for v in graph.initializer}
    halves = [name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT16]
    assert halves
    assert not any(name.startswith("dq/steps") or name.startswith("time_embedding") for name in halves)
    sources = {n.output[0]: n for n in graph.node}
    for node in graph.node:
        if node.name.startswith("dq/"):
            assert not any(name in halves for name in node.input), node.name
            assert not any(name.endswith("/float16") for name in node.input), node.name
    sine = next(node for node in graph.node if node.op_type == "Sin")
    assert not any("float16" in name for name in sine.input)
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64)
    read = {part.input for entry in entries for part in entry.parts}
    assert any(name.startswith("cast/") and name.endswith("/float32") for name in read)
    assert all(name in sources or name in {v.name for v in graph.input} for name in read)


def test_a_cast_to_the_float_type_stands_behind_the_bias_and_nowhere_in_the_layer(record, traced):
    graph, _, _ = graph_of(record, traced, "float16")
    for node in graph.node:
        if node.name.startswith("cast/dq/"):
            assert node.name.endswith(("/biased/float16", "/scaled/float16")), node.name


def test_onnx_agrees_with_every_type(record, traced):
    graph, _, _ = graph_of(record, traced, "float16")
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)


def chain(*steps, inputs=("x",)):
    """x -> op -> op ... -> y with a constant each; `steps` are (op, module path, constant or None)."""
    shapes = {name: ["B"] if name == "timestep" else ["B", "size"] for name in inputs}
    values = {name: ir.Value(name=name, type=FLOAT, shape=ir.Shape(shapes[name])) for name in inputs}
    graph = ir.Graph(list(values.values()), [], nodes=[], opset_imports={"": 21}, name="chain")
    value = values[inputs[0]]
    for index, (op, path, constant) in enumerate(steps):
        operands = [value]
        if constant is not None:
            array = np.full(4, constant, np.float32)
            held = ir.Value(name=f"c{index}", type=FLOAT, shape=ir.Shape([4]), const_value=ir.tensor(array))
            graph.register_initializer(held)
            operands.append(held)
        node = ir.node(op, operands, name=f"n{index}")
        node.metadata_props[MODULE_KEY] = path
        graph.append(node)
        value = node.outputs[0]
        value.name, value.type, value.shape = f"v{index}", FLOAT, ir.Shape(["B", "size"])
    value.name = "y"
    graph.outputs.append(value)
    return ir.Model(graph, ir_version=10)


def run(model, x):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    with np.errstate(over="ignore"):  # ONNX Runtime computes float16 chains in float32 on a CPU; this one does not
        return onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x})[0]


def test_a_layer_above_a_quarter_of_the_range_and_what_reads_it_stay_float32():
    steps = [("Mul", "a", 3.0), ("Mul", "big", 1e4), ("Mul", "big2", 8.0), ("Mul", "small", 1e-3)]
    model = chain(*steps)
    types = FloatTypes("float16", {"a": 9.0, "big": 3e4, "big2": 2.4e5, "small": 240.0})
    types.apply(model)
    assert [row.to_json() for row in types.kept] == [
        {"name": "big", "largest": 3e4, "kept": "float32", "why": "largest |activation| in calibration"},
        {"name": "big2", "largest": 2.4e5, "kept": "float32", "why": "largest |activation| in calibration"},
    ]
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(run(model, x), 240, rtol=1e-3)
    kinds = {v.name: v.data_type for v in ir.to_proto(model).graph.initializer}
    assert kinds["c0"] == onnx.TensorProto.FLOAT16
    assert {kinds["c1"], kinds["c2"], kinds["c3"]} == {onnx.TensorProto.FLOAT}


def test_the_same_layers_overflow_without_their_ranges():
    model = chain(("Mul", "a", 3.0), ("Mul", "big", 1e4), ("Mul", "big2", 8.0), ("Mul", "small", 1e-3))
    FloatTypes("float16").apply(model)
    assert np.isinf(run(model, np.ones((2, 4), np.float32))).all()


@pytest.mark.parametrize("constant", [1e5, FLOAT16_MAX * 1.01, 1e-6])
def test_a_constant_that_float16_cannot_hold_keeps_its_operation_float32(constant):
    model = chain(("Mul", "a", constant), ("Mul", "b", 1 / constant if constant > 1 else 1e3))
    types = FloatTypes("float16", {})
    types.apply(model)
    assert types.kept[0].name == "n0"
    assert types.kept[0].largest == pytest.approx(constant)
    assert np.isfinite(run(model, np.full((1, 4), 0.5, np.float32))).all()


def test_bfloat16_has_float32s_range_and_keeps_nothing_out():
    model = chain(("Mul", "big", 1e6))
    types = FloatTypes("bfloat16", {"big": 1e6})
    types.apply(model)
    assert types.kept == []
    assert model.graph.initializers["c0"].dtype == ir.DataType.BFLOAT16


def test_what_depends_on_the_timestep_alone_stays_float32():
    model = chain(("Mul", "a", 2.0), inputs=("timestep",))
    FloatTypes("float16").apply(model)
    assert [node.op_type for node in model.graph] == ["Mul"]
    assert model.graph.initializers["c0"].dtype == ir.DataType.FLOAT


def with_bias(record, traced, name, value):
    """The record and its traced graph with another first bias of a layer, and without calibrated ranges."""
    layer = record.layers[name]
    bias = layer.bias.copy()
    bias[0] = value
    edited = onnx.ModelProto()
    edited.CopyFrom(traced)
    (tensor,) = (t for t in edited.graph.initializer if t.name == f"{name}.bias")
    tensor.CopyFrom(onnx.numpy_helper.from_array(bias, tensor.name))
    layers = {**record.layers, name: replace(layer, bias=bias)}
    return replace(record, layers=layers, float_ranges={}), edited


def values_of(graph, record):
    """Every tensor of the graph, which onnx's own reference runs in the graph's types."""
    feeds = {name: np.asarray(value) for name, value in example_inputs(call_of_record(record), 2, 0).items()}
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    run = onnx.reference.ReferenceEvaluator(model)
    return run.run(None, feeds)


@pytest.mark.parametrize("name", ["conv_in", "down_blocks.0.resnets.0.conv1", "mid_block.resnets.0.conv2"])
def test_a_bias_beyond_float16_keeps_its_layer_wide_without_calibration_too(record, traced, name):
    """An imported record has no ranges: what it adds is known all the same."""
    large, edited = with_bias(record, traced, name, 1e6)
    graph, types, _ = graph_of(large, edited, "float16")
    (row,) = (row for row in types.kept if row.name == name)
    assert (row.kept, row.why) == ("float32", "constant that is added")
    assert row.largest == pytest.approx(1e6, rel=1e-3)  # a bias row a step: the largest of all
    narrow = {n.input[0] for n in graph.node if n.op_type == "Cast" and n.name.endswith("/float16")}
    made = {o for n in graph.node for o in n.output if name in n.name}
    assert not narrow & made
    (output,) = values_of(graph, large)
    assert np.isfinite(output).all()


def test_a_bias_that_float16_holds_keeps_nothing_wide(record, traced):
    _, types, _ = graph_of(*with_bias(record, traced, "conv_in", 100.0), "float16")
    assert "conv_in" not in {row.name for row in types.kept}
    _, types, _ = graph_of(*with_bias(record, traced, "conv_in", 1e6), "bfloat16")
    assert types.kept == []
