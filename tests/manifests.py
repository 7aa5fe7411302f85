"""Manifests for tests: small ones from nothing, and copies of others with entries changed."""

from __future__ import annotations

from typing import Any, TypeVar

from dq_deploy.manifest.values import EngineManifest, PlanManifest

ENGINE: dict[str, Any] = {
    "target": "onnxruntime",
    "mode": "exact",
    "inputs": [],
    "outputs": [],
    "model_config": {},
    "scheduler_config": None,
    "timesteps": [],
    "step_edges": [],
    "layers": [],
}
PLAN: dict[str, Any] = {
    **ENGINE,
    "target": "tensorrt-rtx",
    "onnx_sha256": "0" * 64,
    "plan_sha256": "0" * 64,
    "runtime": "tensorrt-rtx",
    "runtime_version": "1.7.1.116",
    "compute_capabilities": ["8.9"],
    "profiles": [],
}
AnyManifest = TypeVar("AnyManifest", bound=EngineManifest)


def engine_manifest(**entries: Any) -> EngineManifest:
    """The least manifest of an ONNX file, with these entries as JSON has them."""
    return EngineManifest.from_json({**ENGINE, **entries})


def plan_manifest(**entries: Any) -> PlanManifest:
    """The least manifest of a plan, with these entries as JSON has them."""
    return PlanManifest.from_json({**PLAN, **entries})


def changed(manifest: AnyManifest, **entries: Any) -> AnyManifest:
    """A manifest with these entries as JSON has them."""
    return type(manifest).from_json({**manifest.to_json(), **entries})
