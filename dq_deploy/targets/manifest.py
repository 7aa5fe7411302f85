"""The manifest of an exported engine: what it is, what it was made from, where each layer can be read."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING

from dq_deploy.graph.varying import ALL_VARY, VaryingSizes
from dq_deploy.manifest.values import (
    EngineManifest,
    KeptFloat,
    ManifestLayer,
    ManifestMacs,
    ManifestOptions,
    TensorEntry,
)
from dq_deploy.models import build_denoiser, call_of_record, default_call, input_specs, macs_of, output_specs
from dq_deploy.models.call import argument_name
from dq_deploy.record import OUTPUT, Call, CallInput, content_sha256
from dq_deploy.version import __version__

if TYPE_CHECKING:
    from dq_deploy.models.layers import Macs
    from dq_deploy.models.sizes import TensorSpec
    from dq_deploy.record import Record

_PACKAGES = ("dq_deploy", "torch", "diffusers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


def manifest_of(
    record: Record,
    *,
    layers: Sequence[ManifestLayer],
    notes: Sequence[str],
    options: ManifestOptions,
    float_precision: Sequence[KeptFloat] | None = None,
    varying: VaryingSizes = ALL_VARY,
) -> EngineManifest:
    """What one exported engine says of itself; the same record and options give the same manifest.

    Args:
        record: what the engine was made from.
        layers: per layer its form and the names of its tensors.
        notes: what the passes declined.
        options: target, mode, and further options of the target.
        float_precision: float operations kept in float32; None where the target has no choice.
        varying: which sizes of the call vary in the graph.
    """
    macs = macs_of(build_denoiser(record.family, record.model_config, device="meta"), call_of_record(record))
    assert options.target is not None
    assert options.mode is not None
    return replace(
        manifest_of_record(record, target=options.target, varying=varying),
        mode=options.mode,
        single_step_batch=options.mode == "fast",
        multiples=dict(varying.multiples) or None,
        versions={"python": platform.python_version(), **versions_used()},
        options=options,
        macs=manifest_macs(macs),
        layers=tuple(layers),
        notes=(*varying.notes, *notes),
        float_precision=None if float_precision is None else tuple(float_precision),
    )


def manifest_of_record(record: Record, *, target: str, varying: VaryingSizes = ALL_VARY) -> EngineManifest:
    """What is said of a record that runs as it is, with no graph file in between.

    Args:
        record: the quantized denoiser.
        target: what runs it, as `native`.
        varying: which sizes of the call vary.
    """
    call = call_of_record(record)
    return EngineManifest(
        target=target,
        mode="exact",
        family=record.family,
        model_config=dict(record.model_config),
        scheduler_config=None if record.scheduler_config is None else dict(record.scheduler_config),
        record_sha256=content_sha256(record),
        inputs=input_entries(call, varying),
        outputs=tuple(_tensor(spec, varying) for spec in output_specs(call)),
        sizes=dict(call.sizes),
        constants=dict(call.constants) or None,
        timesteps=tuple(float(timestep) for timestep in record.timesteps),
        step_edges=tuple(float(edge) for edge in record.step_edges),
        layers=(),
    )


def call_of_manifest(manifest: EngineManifest) -> Call:
    """The call of the denoiser that an engine stands for.

    Raises:
        ModelError: an earlier version wrote the manifest, and its configuration does not say the shapes.
    """
    if manifest.sizes is None:
        return default_call(manifest.model_config)
    named = {size for entry in (*manifest.inputs, *manifest.outputs) for size in entry.shape}  # others are fixed in it
    inputs = (
        CallInput(name=argument_name(i.name), dtype=i.dtype, shape=tuple(i.shape), limits=_pair(i.limits))
        for i in manifest.inputs
    )
    return Call(
        inputs=tuple(inputs),
        constants=dict(manifest.constants or {}),
        sizes={name: size for name, size in manifest.sizes.items() if name in named},
        outputs=_own_outputs(manifest.outputs),
    )


def _own_outputs(entries: tuple[TensorEntry, ...]) -> dict[str, tuple[int | str, ...]]:
    """Shapes by the call's own names: a single output is `output` there, whatever the engine's layout calls it."""
    if len(entries) == 1:
        return {OUTPUT: tuple(entries[0].shape)}
    return {entry.name: tuple(entry.shape) for entry in entries}


def manifest_macs(macs: Macs) -> ManifestMacs:
    """A model's multiply-accumulates as the manifest has them."""
    return ManifestMacs(
        of_all=int(macs.of_all),
        of_quantizable=int(macs.of_quantizable),
        attention=int(macs.attention),
        layers={name: int(count) for name, count in macs.layers.items()},
    )


def _pair(limits: tuple[float, ...] | None) -> tuple[float, float] | None:
    return None if limits is None else (limits[0], limits[1])


def input_entries(call: Call, varying: VaryingSizes = ALL_VARY) -> tuple[TensorEntry, ...]:
    """The inputs as a manifest has them, with numbers for the sizes that do not vary."""
    return tuple(
        TensorEntry(name=spec.name, dtype=spec.dtype, shape=varying.shape(spec.shape), limits=item.limits)
        for spec, item in zip(input_specs(call), call.inputs, strict=True)
    )


def _tensor(spec: TensorSpec, varying: VaryingSizes) -> TensorEntry:
    return TensorEntry(name=spec.name, dtype=spec.dtype, shape=varying.shape(spec.shape))


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
