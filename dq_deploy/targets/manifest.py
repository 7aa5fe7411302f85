"""The manifest of an exported engine: what it is, what it was made from, where each layer can be read."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dq_deploy.models import input_specs, macs_of, output_specs
from dq_deploy.record import content_sha256

if TYPE_CHECKING:
    from dq_deploy.record import Record

FORMAT = "dq_deploy.manifest"
VERSION = 1
_PACKAGES = ("dq_deploy", "torch", "diffusers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


def manifest_of(
    record: Record,
    *,
    target: str,
    mode: str,
    layers: Sequence[dict[str, Any]],
    notes: Sequence[str],
    options: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """JSON values that describe one exported engine; the same record and options give the same manifest.

    Args:
        record: what the engine was made from.
        target: one of `targets.TARGETS`.
        mode: `exact` or `fast`.
        layers: per layer its form and the names of its tensors.
        notes: what the passes declined.
        options: further options of the target.
    """
    config = dict(record.model_config)
    macs = macs_of(None, config)
    return {
        "format": FORMAT,
        "version": VERSION,
        "record_sha256": content_sha256(record),
        "target": target,
        "mode": mode,
        "single_step_batch": mode == "fast",
        "family": record.family,
        "model_config": config,
        "scheduler_config": None if record.scheduler_config is None else dict(record.scheduler_config),
        "inputs": [_spec(spec) for spec in input_specs(config)],
        "outputs": [_spec(spec) for spec in output_specs(config)],
        "timesteps": [float(t) for t in record.timesteps],
        "step_edges": [float(e) for e in record.step_edges],
        "versions": {"python": platform.python_version(), **versions_used()},
        "options": {"target": target, "mode": mode, **options},
        "macs": {
            "of_all": int(macs.of_all),
            "of_quantizable": int(macs.of_quantizable),
            "attention": int(macs.attention),
            "layers": {name: int(count) for name, count in macs.layers.items()},
        },
        "layers": list(layers),
        "notes": list(notes),
    }


def _spec(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def versions_used() -> dict[str, str]:
    """Version of each package that has a hand in an export; `source` where it is not installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "source"
    return found
