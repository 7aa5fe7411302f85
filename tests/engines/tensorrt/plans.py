"""Real plans for the tests of the runner: one linear, built in seconds, with any change of its manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx

from dq_deploy.engines.tensorrt.build.builder import BuildOptions, build_plan
from dq_deploy.manifest.plan import plan_manifest_path, read_plan_manifest, write_plan_manifest
from dq_deploy.manifest.values import EngineManifest
from tests.engines.tensorrt import plan_models
from tests.manifests import changed

SHAPES = "sample:1x64..2x64..8x64"


def build_linear(folder: Path, capability: str = "8.0") -> Path:
    """A plan of one int8 linear from `sample` [B, 64] to [B, 64], with its manifest."""
    source = plan_models.linears(folder / "linear.onnx")
    output = onnx.load(source).graph.output[0].name
    entries = plan_models.linear_manifest(
        outputs=[{"name": output, "dtype": "float32", "shape": ["B", plan_models.SIZE]}],
        timesteps=[0.0, 500.0],
        step_edges=[250.0],
        scheduler_config=None,
        single_step_batch=False,
    )
    options = BuildOptions(runtime="tensorrt-rtx", compute_capabilities=(capability,), shapes=(SHAPES,))
    path = folder / "linear.plan"
    write_plan_manifest(path, build_plan(source, path, options, manifest=EngineManifest.from_json(entries)))
    return path


def copy_with(plan: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a plan whose manifest differs."""
    target = folder / plan.name
    shutil.copy(plan, target)
    if "version" in changes:  # which the writer decides
        side = plan_manifest_path(target)
        side.write_text(json.dumps({**json.loads(plan_manifest_path(plan).read_text()), **changes}))
    else:
        write_plan_manifest(target, changed(read_plan_manifest(plan), **changes))
    return target
