"""The float16 plan a plan is timed against is built from the same model, for the same GPUs and shapes."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx to build a plan")

from dq_deploy.bench.plan_baseline import float_plan
from dq_deploy.engines.tensorrt.library import tensorrt_library
from dq_deploy.graph.onnx_file import read_manifest
from dq_deploy.manifest.plan import plan_manifest_of, read_plan_manifest, write_plan_manifest
from dq_deploy.manifest.values import PlanFacts

PROFILE = {
    "sample": {"min": [1, 1, 8, 8], "opt": [2, 1, 8, 8], "max": [4, 1, 8, 8]},
    "timestep": {"min": [1], "opt": [2], "max": [4]},
    "class_labels": {"min": [1], "opt": [2], "max": [4]},
}


@pytest.fixture(scope="module")
def plan(tiny_engine, tmp_path_factory):
    """The manifest of a quantized plan; the baseline is built from that alone, its bytes are not read."""
    manifest = replace(read_manifest(tiny_engine), target="tensorrt-rtx")
    facts = {
        "plan_sha256": "0" * 64,
        "onnx_sha256": "0" * 64,
        "runtime": "tensorrt-rtx",
        "runtime_version": tensorrt_library("tensorrt-rtx").__version__,
        "compute_capabilities": ["8.0"],
        "portable": False,
        "profiles": [PROFILE],
        "build": {"workspace_mib": 64},
    }
    path = tmp_path_factory.mktemp("plan") / "unet.plan"
    path.write_bytes(b"")
    write_plan_manifest(path, plan_manifest_of(manifest, PlanFacts.from_json(facts)))
    return path


def test_the_baseline_is_float16_and_takes_the_same_inputs(plan, tiny_record, tmp_path):
    found = read_plan_manifest(float_plan(plan, tmp_path, tiny_record))
    own = read_plan_manifest(plan, check_hash=False)
    for key in ("inputs", "outputs", "profiles", "compute_capabilities", "runtime", "runtime_version", "model_config"):
        assert getattr(found, key) == getattr(own, key), key
    assert found.build.workspace_mib == 64
    assert found.layers == ()
    assert "record_sha256" not in found.to_json()
    graph = onnx.load(tmp_path / "float.onnx").graph
    operators = {node.op_type for node in graph.node}
    assert not {"QuantizeLinear", "DequantizeLinear"} & operators
    heavy = [t for t in graph.initializer if len(t.dims) in (2, 4) and t.data_type == onnx.TensorProto.FLOAT16]
    assert len(heavy) > 10
