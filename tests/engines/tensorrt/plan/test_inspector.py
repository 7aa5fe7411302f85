"""The engine inspector's JSON, in both dialects; the samples are synthetic, see their note."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dq_deploy.artifacts import sha256_of_file
from dq_deploy.engines.tensorrt.plan import inspector
from dq_deploy.engines.tensorrt.plan.inspector import (
    dialect_of,
    inspector_from_text,
    layers_path,
    read_inspector,
    type_of,
)
from dq_deploy.manifest.values import PlanManifest
from dq_deploy.verify.plan.attestation import attest_plan
from tests.manifests import plan_manifest

DATA = Path(__file__).parent / "data"
SAMPLES = ("inspector-10-synthetic.json", "inspector-11-synthetic.json")
INTEGER = ("int8", "int8")


def sample(name: str) -> dict[str, Any]:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_say_that_they_are_synthetic(name):
    assert sample(name)["Note"].startswith("synthetic")


@pytest.mark.parametrize("name", SAMPLES)
def test_products_of_both_dialects_are_told_apart(name):
    told = inspector_from_text((DATA / name).read_text(encoding="utf-8"))
    assert told.problem == ""
    operands = {node: product.operands for product in told.products for node in product.nodes}
    assert operands["dq/conv_in/product"] == INTEGER
    assert operands["dq/mid/conv1/product"] == ("half", "half")
    assert operands["dq/to_q/product"] == operands["dq/to_k/product"] == INTEGER
    assert operands["dq/to_out/product"] == INTEGER
    assert operands["dq/proj/product"] == ("unknown", "unknown"), "tensors are int8, the tactic multiplies halves"
    assert "node_MatMul_1" not in operands
    assert {kernel.name for kernel in told.kernels} == {
        "__myl_MulRoun_myl0_0", "_gemm_mha_v2_myl0_5", "Reformatting CopyNode for Output Tensor 0 to out"
    }  # fmt: skip


CONV = {
    "kind": "conv", "n": 32, "c": 4, "kernel": [3, 3], "stride": [1, 1], "padding": [1, 1, 1, 1], "dilation": [1, 1],
    "spatial": [8, 8], "spatial_out": [8, 8],
}  # fmt: skip
LAYERS = {
    "conv_in": CONV,
    "mid/conv1": {**CONV, "c": 32},
    "to_q": {"kind": "gemm", "m": 64, "n": 32, "k": 32},
    "to_k": {"kind": "gemm", "m": 64, "n": 32, "k": 32},
    "to_out": {"kind": "gemm", "m": 64, "n": 32, "k": 32},
    "proj": {"kind": "gemm", "m": 64, "n": 16, "k": 32},
    "gone": {"kind": "gemm", "m": 64, "n": 99, "k": 32},
}


def manifest(plan) -> PlanManifest:
    layers = [
        {"name": name, "integer": True, "reason": "", "parts": [{"node": f"dq/{name}/product", "product": shape}]}
        for name, shape in LAYERS.items()
    ]
    return plan_manifest(
        plan_sha256=sha256_of_file(plan),
        runtime="tensorrt",
        runtime_version="10.16.0",
        compute_capabilities=["9.0"],
        inputs=[{"name": "sample", "dtype": "float32", "shape": [1, 4, 8, 8]}],
        layers=layers,
        macs={"layers": dict.fromkeys(LAYERS, 10), "of_all": 100, "of_quantizable": 80, "attention": 20},
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_a_plan_of_full_tensorrt_is_attested_from_the_json_beside_it(tmp_path, name):
    plan = tmp_path / "unet.plan"
    plan.write_bytes(b"ftrt engine")
    layers_path(plan).write_text(json.dumps({**sample(name), "plan_sha256": sha256_of_file(plan)}))
    told = attest_plan(plan, manifest(plan))
    assert told.problem == ""
    assert {layer.name: layer.executed for layer in told.layers} == {
        "conv_in": "integer", "mid/conv1": "float", "to_q": "integer", "to_k": "integer", "to_out": "integer",
        "proj": "unknown", "gone": "unknown",
    }  # fmt: skip
    assert told.integer_mac_share == 0.4
    assert told.macs.unknown == 20
    assert [(row.kernel, row.role) for row in told.unfused] == [("__myl_MulRoun_myl0_0", "quantize")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "cannot be read (JSONDecodeError"),
        ("[]", "cannot be read (TypeError"),
        ("{}", "cannot be read (KeyError"),
        ("[" * 100_000, "cannot be read (RecursionError"),
        ('{"Layers": []}', "of no dialect"),
        ('{"Layers": [], "Bindings": [], "I/O Tensors": []}', "of no dialect"),
        ('{"Layers": 3, "Bindings": []}', "of no dialect"),
        ('{"Layers": ["conv + relu"], "Bindings": []}', "detailed profiling verbosity"),
        ('{"Layers": [{"Name": "a"}], "Bindings": []}', "cannot be read (KeyError"),
        ('{"Layers": [{"Name": "a", "LayerType": "gemm", "Inputs": [{"Dimensions": "x"}], "Outputs": [3]}], '
         '"Bindings": []}', "cannot be read"),
    ],
)  # fmt: skip
def test_json_that_cannot_be_read_is_a_problem_and_no_product(text, problem):
    told = inspector_from_text(text)
    assert problem in told.problem
    assert (told.products, told.kernels) == ((), ())


def test_a_file_that_is_no_text_or_is_missing_is_a_problem(tmp_path):
    plan = tmp_path / "unet.plan"
    assert "the engine cannot be loaded" in read_inspector(plan).problem
    layers_path(plan).write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in read_inspector(plan).problem


@pytest.mark.parametrize("added", [{}, {"plan_sha256": "00" * 32}])
def test_json_of_another_plan_is_a_problem(tmp_path, added):
    plan = tmp_path / "unet.plan"
    plan.write_bytes(b"ftrt engine")
    layers_path(plan).write_text(json.dumps({**sample(SAMPLES[0]), **added}))
    told = attest_plan(plan, manifest(plan))
    assert "is of another plan" in told.problem
    assert {layer.executed for layer in told.layers} == {"unknown"}


def test_only_one_of_the_two_marks_makes_a_dialect():
    assert [dialect_of(sample(name)) for name in SAMPLES] == ["10", "11"]


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ({"Format/Datatype": "Row major linear Int8 format"}, "int8"),
        ({"Format/Datatype": "Thirty-two wide channel vectorized row major FP16 format"}, "half"),
        ({"Format/Datatype": "Channel major FP32 format where channel % 4 == 0"}, "float"),
        ({"Format/Datatype": "Row major BF16"}, "bf16"),
        ({"Format/Datatype": "Half"}, "half"),
        ({"DataType": "Int4", "Format": "Row major linear FP32 format"}, "int4"),
        ({"Format": "Row major linear Int8 format"}, "int8"),
        ({"Format/Datatype": "N/A due to dynamic shapes"}, "unknown"),
        ({"Format/Datatype": "Int8 or FP16"}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_element_types_are_read_from_words_of_either_dialect(tensor, kind):
    assert type_of(tensor) == kind


def test_a_convolution_with_int8_tensors_and_float_weights_is_not_integer():
    value = sample(SAMPLES[0])
    layer = next(row for row in value["Layers"] if row.get("Kernel"))
    layer["Weights"]["Type"] = "Float"
    told = inspector_from_text(json.dumps(value))
    (product,) = [p for p in told.products if "dq/conv_in/product" in p.nodes]
    assert product.operands == ("unknown", "unknown")


def test_what_was_stored_is_read_and_what_was_altered_is_a_problem(tmp_path, monkeypatch):
    plan = tmp_path / "unet.plan"
    plan.write_bytes(b"ftrt engine")
    monkeypatch.setattr(inspector, "inspector_json_of_engine", lambda path: json.dumps(sample(SAMPLES[1])))
    inspector.store_layers(plan)
    assert read_inspector(plan).problem == ""
    text = layers_path(plan).read_text()
    layers_path(plan).write_text(text.replace("Int8", "Half", 1))
    assert text != layers_path(plan).read_text()
    assert "is not what was written" in read_inspector(plan).problem
