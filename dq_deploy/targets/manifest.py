"""The manifest of an exported engine: what it is, what it was made from, where each layer can be read."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from dq_deploy.manifest.values import (
    EngineManifest,
    KeptFloat,
    ManifestLayer,
    ManifestMacs,
    ManifestOptions,
    TensorEntry,
)
from dq_deploy.models import input_specs, macs_of, output_specs
from dq_deploy.record import content_sha256
from dq_deploy.version import __version__

if TYPE_CHECKING:
    from dq_deploy.models.layers import Macs, TensorSpec
    from dq_deploy.record import Record

_PACKAGES = ("dq_deploy", "torch", "diffusers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


def manifest_of(
    record: Record,
    *,
    layers: Sequence[ManifestLayer],
    notes: Sequence[str],
    options: ManifestOptions,
    float_precision: Sequence[KeptFloat] | None = None,
) -> EngineManifest:
    """What one exported engine says of itself; the same record and options give the same manifest.

    Args:
        record: what the engine was made from.
        layers: per layer its form and the names of its tensors.
        notes: what the passes declined.
        options: target, mode, and further options of the target.
        float_precision: float operations kept in float32; None where the target has no choice.
    """
    config = dict(record.model_config)
    macs = macs_of(None, config)
    assert options.target is not None
    assert options.mode is not None
    return EngineManifest(
        record_sha256=content_sha256(record),
        target=options.target,
        mode=options.mode,
        single_step_batch=options.mode == "fast",
        family=record.family,
        model_config=config,
        scheduler_config=None if record.scheduler_config is None else dict(record.scheduler_config),
        inputs=tuple(_tensor(spec) for spec in input_specs(config)),
        outputs=tuple(_tensor(spec) for spec in output_specs(config)),
        timesteps=tuple(float(t) for t in record.timesteps),
        step_edges=tuple(float(e) for e in record.step_edges),
        versions={"python": platform.python_version(), **versions_used()},
        options=options,
        macs=manifest_macs(macs),
        layers=tuple(layers),
        notes=tuple(notes),
        float_precision=None if float_precision is None else tuple(float_precision),
    )


def manifest_macs(macs: Macs) -> ManifestMacs:
    """A model's multiply-accumulates as the manifest has them."""
    return ManifestMacs(
        of_all=int(macs.of_all),
        of_quantizable=int(macs.of_quantizable),
        attention=int(macs.attention),
        layers={name: int(count) for name, count in macs.layers.items()},
    )


def _tensor(spec: TensorSpec) -> TensorEntry:
    return TensorEntry(name=spec.name, dtype=spec.dtype, shape=tuple(spec.shape))


def versions_used() -> dict[str, str]:
    """Version of each package that has a hand in an export; `source` where it is not installed."""
    found = {}
    for name in _PACKAGES:
        try:
            # of its own version the package knows better than an installation that an edit made old
            found[name] = __version__ if name == "dq_deploy" else metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "source"
    return found
