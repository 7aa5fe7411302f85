"""One small denoiser as three plans of TensorRT-RTX: in integers, with one layer kept float, and all float."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dq_deploy import export, save_record
from dq_deploy.engines.tensorrt.build.builder import BuildOptions, build_plan
from dq_deploy.graph.onnx_file import read_manifest
from dq_deploy.manifest.plan import write_plan_manifest
from dq_deploy.manifest.values import EngineManifest
from dq_deploy.record import Record
from dq_deploy.targets import float_graph
from dq_deploy.verify.plan.attestation import attest_plan
from tests.tiny import random_record, tiny_denoiser

KEPT = "mid_block.resnets.0.conv1"
CAPABILITIES = ("8.0", "8.9")
BLOCKS = {"block_out_channels": [8], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}


def write_small_plans(folder: Path) -> None:
    """Export, build and attest the three."""
    folder.mkdir()
    denoiser = tiny_denoiser(**BLOCKS)
    record = random_record(denoiser, weight_bits=8)
    save_record(record, folder / "int.pt")
    state = {key: value.detach().numpy().copy() for key, value in denoiser.module.state_dict().items()}
    for name, source in (("int", record), ("kept", with_float_layer(record, state, KEPT))):
        export(source, folder / f"{name}.onnx", target="tensorrt-rtx", float_type="float16", conv="gemm")
        _build(folder, name, None)
    manifest = read_manifest(folder / "int.onnx")
    float_graph(manifest, folder / "float.onnx", record=record)
    _build(folder, "float", manifest)


def with_float_layer(record: Record, state: dict[str, Any], name: str) -> Record:
    """The record without one layer, whose weights are float parameters again."""
    layers = {key: layer for key, layer in record.layers.items() if key != name}
    floats = {key: state[key] for key in (f"{name}.weight", f"{name}.bias")}
    return replace(record, layers=layers, float_parameters={**record.float_parameters, **floats})


def _build(folder: Path, name: str, manifest: EngineManifest | None) -> None:
    plan = folder / f"{name}.plan"
    options = BuildOptions(compute_capabilities=CAPABILITIES)
    built = build_plan(folder / f"{name}.onnx", plan, options, manifest=manifest)
    write_plan_manifest(plan, replace(built, layers_built=attest_plan(plan, built).layers_built()))
