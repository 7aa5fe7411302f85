"""Targets tensorrt and tensorrt-rtx: the graph is proven on ONNX Runtime, and TensorRT-RTX builds it in integers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from dq_deploy.cli.verify import refuse
from dq_deploy.engines.tensorrt.plan.text import read_plan_text
from dq_deploy.errors import GuaranteeError, OptionError
from dq_deploy.graph.onnx_file import read_manifest
from dq_deploy.targets import export, float_graph
from dq_deploy.verify import verify
from dq_deploy.verify.onnx.float32_form import first_difference
from tests.engines.tensorrt.rtx_plans import build_plans, needs_builder
from tests.graph.passes.single_layer import random_layer
from tests.graph.passes.tensorrt_layer import tensorrt_model
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser


@pytest.fixture(scope="module")
def record():
    return random_record(tiny_denoiser(classes=3, **ONE_LEVEL))


@pytest.fixture(scope="module")
def graph(record, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "unet.onnx"
    export(record, path, target="tensorrt-rtx", float_type="float32")
    return path


@pytest.fixture(scope="module")
def narrow(record, graph):
    path = graph.with_name("narrow.onnx")
    export(record, path, target="tensorrt-rtx", float_type="float16")
    return path


def test_verify_proves_the_graph_and_says_that_it_is_not_the_engine(record, narrow):
    report = verify(record, narrow, steps=2, inputs=1, threads=1)
    assert report.engine == "narrow.onnx"
    assert report.failures == ()
    assert report.max_code_difference == 0
    assert report.max_accumulator_difference == 0
    assert report.layers_compared == report.layers_total == len(record.layers)
    assert report.accumulators_probed > 0
    assert "its float32 form was proven" in report.notes[0]
    assert "and not the engine" in report.notes[1]
    assert all(row.status == "exact" and "the graph only" in row.reason for row in report.layers)
    refuse(report, exact=True, require_integer=None)
    with pytest.raises(GuaranteeError, match="integer share is 0"):
        refuse(report, exact=False, require_integer=0.5)


def edited(path, out, change):
    model = onnx.load(str(path))
    change(model.graph)
    onnx.save(model, str(out))
    return out


def test_a_float16_graph_is_its_float32_form_but_for_casts_and_types(graph, narrow):
    assert first_difference(narrow, graph) == ""


def flipped_code(graph):
    tensor = next(t for t in graph.initializer if t.name == "dq/conv_in/weight")
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]


def other_constant(graph):
    tensor = next(t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT16)
    array = onnx.numpy_helper.to_array(tensor) + np.float16(0.5)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def other_attribute(graph):
    node = next(n for n in graph.node if n.op_type == "GroupNormalization")
    next(a for a in node.attribute if a.name == "epsilon").f = 1e-3


def another_operator(graph):
    next(n for n in graph.node if n.op_type == "Sigmoid").op_type = "Tanh"


def without_a_clamp(graph):
    node = next(n for n in graph.node if n.name.endswith("/rounded"))
    reader = next(n for n in graph.node if node.output[0] in n.input)
    reader.input[list(reader.input).index(node.output[0])] = node.input[0]


@pytest.mark.parametrize("change", [flipped_code, other_constant, other_attribute, another_operator, without_a_clamp])
def test_any_other_difference_between_the_two_is_found(graph, narrow, tmp_path, change):
    assert first_difference(edited(narrow, tmp_path / "bad.onnx", change), graph)


def test_verify_refuses_a_float16_graph_that_is_not_the_records(record, narrow, tmp_path):
    bad = edited(narrow, tmp_path / "bad.onnx", flipped_code)
    report = verify(record, bad, steps=1, inputs=1, threads=1)
    assert not report.exact
    assert any("dq/conv_in/weight" in text for text in report.failures)


def test_verify_finds_a_wrong_weight_and_a_wrong_bias_table(record, graph, tmp_path):
    for name in ("dq/conv_out/weight", "dq/conv_out/bias/table"):
        model = onnx.load(str(graph))
        tensor = next(t for t in model.graph.initializer if t.name == name)
        array = np.array(onnx.numpy_helper.to_array(tensor))
        array[..., 0] = -array[..., 0] if array.dtype == np.int8 else array[..., 0] * 1.01
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))
        onnx.save(model, str(tmp_path / "bad.onnx"))
        report = verify(record, tmp_path / "bad.onnx", steps=1, inputs=1, threads=1)
        found = next(row.first_difference for row in report.layers if row.name == "conv_out")
        assert found is not None
        assert found.tensor == ("accumulator" if "weight" in name else "output")


def test_the_manifest_tells_what_attestation_needs(record, graph):
    manifest = read_manifest(graph)
    options = {"target": "tensorrt-rtx", "mode": "exact", "float_type": "float32", "conv": "gemm"}
    assert manifest.options.to_json() == options
    assert manifest.float_precision == ()
    for entry in manifest.layers:
        assert entry.integer
        for part, held in zip(entry.parts, record.layers[entry.name].parts, strict=True):
            product = part.product
            assert product.kind == "gemm"
            assert product.n == held.w_code.shape[1]
            assert product.k == np.prod(held.w_code.shape[2:])
            # TensorRT-RTX fails on a 4-bit matrix with one column
            assert part.weight_type == ("int8" if product.n == 1 else "int4")
    rows = {entry.name: [part.product.m for part in entry.parts] for entry in manifest.layers}
    assert all(
        set(rows[name]) == {None} for name, layer in record.layers.items() if layer.kind == "conv2d"
    )  # they vary
    known = [entry for entry in manifest.layers if None not in rows[entry.name]]
    assert known
    macs = {e.name: sum(np.prod([getattr(p.product, x) for x in "mnk"]) for p in e.parts) for e in known}
    assert macs == {name: manifest.macs.layers[name] for name in macs}


def test_the_full_tensorrt_gets_convolutions_and_weights_in_eight_bits(record, tmp_path):
    manifest = export(record, tmp_path / "unet.onnx", target="tensorrt")
    assert manifest.options.to_json() == {
        "target": "tensorrt",
        "mode": "exact",
        "float_type": "float16",
        "conv": "native",
    }
    for entry in manifest.layers:
        kind = "conv" if record.layers[entry.name].kind == "conv2d" else "gemm"
        assert {(p.product.kind, p.weight_type) for p in entry.parts} == {(kind, "int8")}


def test_the_float_graph_is_written_in_the_float_type(record, graph, tmp_path):
    path = tmp_path / "float.onnx"
    float_graph(read_manifest(graph), path, record=record, float_type="bfloat16")
    model = onnx.load(str(path))
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert kinds["conv_in.weight"] == onnx.TensorProto.BFLOAT16
    assert kinds["time_embedding.linear_1.weight"] == onnx.TensorProto.FLOAT
    assert {v.type.tensor_type.elem_type for v in model.graph.output} == {onnx.TensorProto.FLOAT}
    with pytest.raises(OptionError, match="expected one of float16"):
        float_graph(read_manifest(graph), path, float_type="float8")


def layers_to_build():
    rng = np.random.default_rng(0)
    conv = {"kernel": (3, 3), "padding": (1, 1, 1, 1), "widths": (32,), "outputs": 48}
    for bits in ((8, 8), (4, 8), (6, 6)):
        widths = {"weight_bits": bits[0], "activation_bits": bits[1]}
        yield "patches", bits, random_layer(rng, **widths, **conv), (16, 16), "gemm"
        yield "strided", bits, random_layer(rng, **widths, **{**conv, "stride": (2, 2)}), (16, 16), "gemm"
        yield "pixels", bits, random_layer(rng, **widths, kernel=(1, 1), widths=(32,), outputs=48), (16, 16), "native"
        yield "linear", bits, random_layer(rng, kind="linear", **widths, widths=(64, 32), outputs=48), (16,), "gemm"
        yield "convolution", bits, random_layer(rng, **widths, **conv), (16, 16), "native"
    for form, how in (("convolution", "native"), ("patches", "gemm")):
        yield form, (8, 8), random_layer(rng, weight_bits=8, steps=1, **conv), (16, 16), how


@needs_builder
@pytest.mark.parametrize("float_type", ["float16", "float32"])
def test_tensorrt_rtx_builds_each_form_as_an_int8_product(tmp_path, float_type):
    forms = list(layers_to_build())
    jobs = []
    for index, (_, _, layer, size, conv) in enumerate(forms):
        proto, _ = tensorrt_model(layer, size, conv=conv, float_type=float_type, steps=len(layer.parts[0].scale))
        path = tmp_path / f"{index}.onnx"
        path.write_bytes(proto.SerializeToString())
        x = list(proto.graph.input[0].type.tensor_type.shape.dim)[1:]
        shapes = [[batch, *(d.dim_value for d in x)] for batch in (1, 2, 4)]
        profile = {"x": shapes, "timestep": [[1], [2], [4]]}
        jobs.append(
            {"onnx": str(path), "plan": str(tmp_path / f"{index}.plan"), "capabilities": ["SM80"], "profile": profile}
        )
    build_plans(jobs)
    for (form, bits, layer, _, _), job in zip(forms, jobs, strict=True):
        text = read_plan_text(job["plan"])
        assert not text.problem
        products = [product for product in text.products if any("product" in node for node in product.nodes)]
        assert len(products) == len(layer.parts), (form, bits)
        for product in products:
            assert product.kind == ("conv" if form == "convolution" else "gemm")
            assert product.operands[0] == "int8", (form, bits, product.operands)
            assert product.operands[1] in ("int8", "int4"), (form, bits, product.operands)
