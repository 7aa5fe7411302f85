"""Weight-only linears: the same result as the float model, in four bits, on each runtime that is here."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from dq_deploy.engines.tensorrt.plan.text import read_plan_text
from dq_deploy.errors import RecordError
from dq_deploy.graph.pass_contract import run_passes
from dq_deploy.graph.passes.cleanup import RemoveUnused
from dq_deploy.graph.passes.float_types import FloatTypes
from dq_deploy.graph.passes.tensorrt_layers import TensorRtLayers
from dq_deploy.graph.passes.weight_only_layers import FORMS, WeightOnlyLayers
from dq_deploy.graph.trace import MODULE_KEY
from dq_deploy.record import Layer, Part, Record, WeightOnlyLayer
from tests.engines.tensorrt.rtx_plans import build_plans, needs_builder

FLOAT = ir.TensorType(ir.DataType.FLOAT)
TOKENS = 9


def light_layer(name, n_out, n_in, *, block=64, bits=4, bias=True, seed=0) -> WeightOnlyLayer:
    rng = np.random.default_rng(seed)
    half = 2 ** (bits - 1)
    return WeightOnlyLayer(
        name=name,
        weight_bits=bits,
        block_size=block,
        w_code=rng.integers(-half, half, (n_out, n_in)).astype(np.int8),
        scale=rng.uniform(0.001, 0.02, (n_out, n_in // block)).astype(np.float32),
        bias=rng.standard_normal(n_out).astype(np.float32) if bias else None,
    )


def integer_layer(name, size, seed) -> Layer:
    rng = np.random.default_rng(seed)
    part = Part(
        pre=np.ones(size, np.float32),
        scale=np.full(1, 0.03, np.float32),
        zero_point=np.zeros(1, np.int32),
        w_code=rng.integers(-128, 128, (1, size, size)).astype(np.int8),
        w_zero_point=np.zeros((1, size), np.int32),
        weight_scale=np.full((1, size), 1e-3, np.float32),
    )
    return Layer(
        name=name, kind="linear", weight_bits=8, activation_bits=8, q_min=-128, q_max=127, parts=(part,), bias=None
    )


def record_of(*layers) -> Record:
    one = np.ones(1, np.float32)
    return Record(
        family="unet2d",
        layers={layer.name: layer for layer in layers if isinstance(layer, Layer)},
        weight_only={layer.name: layer for layer in layers if isinstance(layer, WeightOnlyLayer)},
        timesteps=one,
        step_edges=one[1:],
        float_parameters={},
        model_config={},
    )


def float_graph(layers, *, rank=3) -> ir.Model:
    """The layers one behind the other with Relu between, as the tracer writes them: Gemm at rank 2, else MatMul + Add.

    Args:
        layers: (name, float weight [N, K], bias or None).
        rank: of the input.
    """
    k = layers[0][1].shape[1]
    x = ir.Value(name="x", type=FLOAT, shape=ir.Shape(["B", *[TOKENS] * (rank - 2), k]))
    timestep = ir.Value(name="timestep", type=FLOAT, shape=ir.Shape(["B"]))
    nodes, initializers, y = [], [], x

    def constant(name, array):
        value = ir.Value(name=name, type=FLOAT, shape=ir.Shape(array.shape), const_value=ir.tensor(array, name=name))
        initializers.append(value)
        return value

    def node(op, inputs, path="", **attributes):
        made = ir.node(op, inputs, attributes=attributes)
        if path:
            made.metadata_props[MODULE_KEY] = path
        nodes.append(made)
        made.outputs[0].name, made.outputs[0].type = f"v{len(nodes)}", FLOAT
        return made.outputs[0]

    for i, (name, weight, bias) in enumerate(layers):
        n = len(weight)
        if rank == 2:
            inputs = [y, constant(f"{name}.weight", weight)] + ([] if bias is None else [constant(f"{name}.b", bias)])
            y = node("Gemm", inputs, name, transB=1)
        else:
            y = node("MatMul", [y, constant(f"{name}.weight", np.ascontiguousarray(weight.T))], name)
            y.shape = ir.Shape([*list(x.shape)[:-1], n])
            y = y if bias is None else node("Add", [y, constant(f"{name}.b", bias)], name)
        y.shape = ir.Shape([*list(x.shape)[:-1], n])
        if i < len(layers) - 1:
            y = node("Relu", [y])
            y.shape = ir.Shape([*list(x.shape)[:-1], n])
    y.name = "y"
    graph = ir.Graph([x, timestep], [y], nodes=nodes, initializers=initializers, opset_imports={"": 21}, name="stack")
    return ir.Model(graph, ir_version=10)


def dequantized(layer) -> tuple[str, np.ndarray, np.ndarray | None]:
    if isinstance(layer, WeightOnlyLayer):
        return layer.name, layer.weight(), layer.bias
    part = layer.parts[0]
    return layer.name, part.q_weight(0).astype(np.float32) * part.weight_scale[0][:, None], layer.bias


def rewritten(layers, *, form="dequantize", rank=3):
    """The graph behind the pass, and the pass."""
    step = WeightOnlyLayers(record_of(*layers), form=form)
    result = run_passes(float_graph([dequantized(layer) for layer in layers], rank=rank), [step, RemoveUnused()])
    return result, step


def run(model, x, tmp_path, *, optimized="optimized.onnx"):
    """Output on ONNX Runtime with everything at its defaults, and the operators it really runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.optimized_model_filepath = str(tmp_path / optimized)
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    feeds = {"x": x, "timestep": np.zeros(len(x), np.float32)}
    (y,) = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})
    return y, ir.load(tmp_path / optimized).graph


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("block", [64, 128])
def test_onnx_runtime_computes_what_the_float_model_with_that_weight_does(form, rank, block, tmp_path):
    layers = [light_layer("a", 128, 256, block=block), light_layer("b", 40, 128, block=block, bias=False, seed=1)]
    x = np.random.default_rng(2).standard_normal((3, *[TOKENS] * (rank - 2), 256)).astype(np.float32)
    result, step = rewritten(layers, form=form, rank=rank)
    got, graph = run(result.model, x, tmp_path)
    want, _ = run(float_graph([dequantized(layer) for layer in layers], rank=rank), x, tmp_path, optimized="f.onnx")
    # float rounding of sums of 256 terms; int8 activations would be off by 1e-3 of the largest value
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * float(np.abs(want).max()))
    held = [v.const_value for v in graph.initializers.values() if v.const_value is not None]
    assert not [t for t in held if t.dtype == ir.DataType.FLOAT and t.size >= 128 * 40], "a weight was unpacked"
    assert result.modified
    assert result.notes == ()
    assert [entry.name for entry in step.entries] == ["a", "b"]


def test_the_trap_is_there_codes_as_columns_make_onnx_runtime_quantize_the_activations(tmp_path):
    """Why the codes lie as rows with a Transpose: this fails when ONNX Runtime no longer does it."""
    layer = light_layer("a", 128, 256, bias=False)
    x = np.random.default_rng(2).standard_normal((3, TOKENS, 256)).astype(np.float32)
    model = float_graph([dequantized(layer)])
    matmul = next(node for node in model.graph if node.op_type == "MatMul")
    codes = ir.tensor(np.ascontiguousarray(layer.w_code.T), dtype=ir.DataType.INT4, name="codes")
    scale = ir.tensor(np.ascontiguousarray(layer.scale.T), name="scale")
    values = [ir.Value(name=t.name, type=ir.TensorType(t.dtype), shape=t.shape, const_value=t) for t in (codes, scale)]
    for value in values:
        model.graph.register_initializer(value)
    dequantize = ir.node("DequantizeLinear", values, attributes={"axis": 0, "block_size": 64})
    model.graph.insert_before(matmul, dequantize)
    matmul.replace_input_with(1, dequantize.outputs[0])
    RemoveUnused().apply(model)
    got, graph = run(model, x, tmp_path)
    want, _ = run(float_graph([dequantized(layer)]), x, tmp_path, optimized="f.onnx")
    (product,) = [node for node in graph if node.op_type == "MatMulNBits"]
    assert product.attributes["accuracy_level"].as_int() == 4
    assert np.abs(got - want).max() > 1e-4 * np.abs(want).max()


def test_no_layer_is_fused_to_one_with_integer_activations(tmp_path):
    layers = [light_layer("a", 128, 256)]
    x = np.zeros((1, TOKENS, 256), np.float32)
    _, graph = run(rewritten(layers)[0].model, x, tmp_path)
    assert {node.op_type for node in graph} <= {"DequantizeLinear", "FusedMatMul", "MatMul", "Add", "Transpose"}
    _, graph = run(rewritten(layers, form="matmul_nbits")[0].model, x, tmp_path)
    (product,) = [node for node in graph if node.op_type == "MatMulNBits"]
    assert product.attributes["accuracy_level"].as_int() == 1


def test_blocks_that_onnx_runtimes_operator_refuses_are_dequantized(tmp_path):
    layers = [light_layer("a", 32, 96, block=48)]
    x = np.random.default_rng(0).standard_normal((2, TOKENS, 96)).astype(np.float32)
    result, _ = rewritten(layers, form="matmul_nbits")
    got, graph = run(result.model, x, tmp_path)
    assert "MatMulNBits" not in {node.op_type for node in graph}
    np.testing.assert_allclose(got, x @ layers[0].weight().T + layers[0].bias, rtol=0, atol=1e-5)


def test_the_manifest_entry_says_what_the_layer_is():
    _, step = rewritten([light_layer("a", 128, 256, block=128)], rank=3)
    assert [entry.to_json() for entry in step.entries] == [
        {
            "name": "a",
            "kind": "linear",
            "integer": False,
            "form": "int4 weight-only, block 128",
            "reason": "weights in 4 bits, activations and product in float",
            "parts": [],
            "weight_type": "int4",
            "product": {"kind": "gemm", "m": TOKENS, "n": 128, "k": 256},
        }
    ]
    assert rewritten([light_layer("a", 8, 64)], rank=2)[1].entries[0].product.m == 1


def test_more_than_four_bits_stay_float_with_a_reason():
    result, step = rewritten([light_layer("a", 8, 64, bits=6)])
    assert not result.modified
    assert result.notes == ("weight-only-layers: a stays float: weight-only with 6 bits; this form stores 4",)
    assert step.entries[0].form == step.entries[0].weight_type == "float"
    assert {node.op_type for node in result.model.graph} == {"MatMul", "Add"}


def test_a_layer_that_is_not_in_the_graph_or_twice_is_refused():
    layer = light_layer("a", 64, 64)
    model = float_graph([dequantized(layer)])
    other = dataclasses.replace(layer, name="b")
    with pytest.raises(RecordError, match="layers b of the record are not in the traced graph"):
        WeightOnlyLayers(record_of(layer, other)).apply(model)
    twice = float_graph([dequantized(layer), ("z", layer.weight(), None)])
    for node in twice.graph:
        if node.op_type == "MatMul":
            node.metadata_props[MODULE_KEY] = "a"
    with pytest.raises(RecordError, match="layer a runs more than once"):
        WeightOnlyLayers(record_of(layer)).apply(twice)


SIZE, COUNT = 512, 4


def write_stack(path, record, layers, float_type) -> dict:
    """The stack as target tensorrt-rtx writes it, all float where there is no record; returns a job for its plan."""
    model = float_graph([dequantized(layer) for layer in layers])
    passes = [FloatTypes(float_type)]
    if record is not None:
        integer, light = TensorRtLayers(record), WeightOnlyLayers(record)
        types = FloatTypes(float_type, {}, integer.entries, weight_only=tuple(record.weight_only))
        passes = [integer, light, RemoveUnused(), types, RemoveUnused()]
    ir.save(run_passes(model, passes).model, path)
    profile = {"x": [[batch, TOKENS, SIZE] for batch in (1, 2, 4)]}
    profile["timestep"] = [[1], [2], [4]]
    return {"onnx": str(path), "plan": str(path.with_suffix(".plan")), "capabilities": ["SM80"], "profile": profile}


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """Plans of one stack of linears: weight-only with each block and float type, int8, and float."""
    folder = tmp_path_factory.mktemp("plans")
    integers = [integer_layer(f"l{i}", SIZE, i) for i in range(COUNT)]
    jobs = [
        write_stack(folder / "int8.onnx", record_of(*integers), integers, "float16"),
        write_stack(folder / "float16.onnx", None, integers, "float16"),
    ]
    for block, float_type in ((64, "float16"), (128, "float16"), (64, "bfloat16"), (64, "float32")):
        light = [light_layer(f"l{i}", SIZE, SIZE, block=block, seed=i) for i in range(COUNT)]
        jobs.append(write_stack(folder / f"{float_type}-{block}.onnx", record_of(*light), light, float_type))
    build_plans(jobs)
    return folder


@needs_builder
@pytest.mark.parametrize("name", ["float16-64", "float16-128", "bfloat16-64", "float32-64"])
def test_the_plan_holds_the_codes_as_int4_inside_a_kernel_with_the_product(plans, name):
    told = read_plan_text(plans / f"{name}.plan")
    assert told.problem == ""
    assert len(told.products) == COUNT
    holding = {kernel.name for kernel in told.kernels if "int4" in kernel.inputs}
    for product in told.products:
        assert product.fusion in holding, f"{product.nodes} is not in one kernel with its four-bit weights"
        assert not set(product.operands) & {"int8", "int4"}


@needs_builder
def test_the_plan_is_smaller_than_the_int8_one_by_what_the_weights_save(plans):
    size = {path.stem: path.stat().st_size for path in plans.glob("*.plan")}
    weights = COUNT * SIZE * SIZE
    saved = weights - weights / 2 - weights / 64 * 2
    # compiled kernels are the rest of a plan; they are not proportional to its weights
    assert size["int8"] - size["float16-64"] > 0.6 * saved
    assert size["float16"] - size["float16-64"] > weights + 0.6 * saved
    assert size["float16-128"] < size["float16-64"]
