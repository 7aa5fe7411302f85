"""A foreign checkpoint and its float model become a record."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy import models
from dq_deploy.artifacts import sha256_of_file
from dq_deploy.errors import DqError, FileProblemError, ModelError, OptionError
from dq_deploy.models import LayerSite
from dq_deploy.models.pipeline import build_scheduler
from dq_deploy.numerics.arrays import Array
from dq_deploy.readers.architectures.described_network import architecture_of, moved
from dq_deploy.readers.architectures.module_paths import Architecture
from dq_deploy.readers.channel_factors import CHOICES
from dq_deploy.readers.float_model import FloatModel, load_float_model
from dq_deploy.readers.foreign import ForeignModel
from dq_deploy.readers.formats.quantizer_tensors import Source
from dq_deploy.readers.integer_layers import check_activations, convert
from dq_deploy.readers.settings import Settings
from dq_deploy.readers.tensors import few, load_checkpoint
from dq_deploy.record import Layer, Record

if TYPE_CHECKING:
    import torch

READERS = ("q-diffusion", "dmq", "quest", "cachequant", "eda-dm")
"""Sources whose checkpoints can be read; each is a module of this package."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Network:
    """The diffusers network: geometry of its layers, shapes of its parameters, order of its modules."""

    architecture: Architecture
    module: torch.nn.Module
    sites: dict[str, LayerSite]
    shapes: dict[str, tuple[int, ...]]
    order: list[str]
    splits: dict[str, int]

    def layers(self) -> tuple[str, ...]:
        """Source paths of the layers."""
        return tuple(p for p, targets in self.architecture.targets.items() if targets[0].name in self.sites)


def import_checkpoint(
    reader: str,
    checkpoint: str | Path,
    float_model: str | Path,
    settings: Settings,
    *,
    masks: str = "float",
    component: str | None = None,
) -> Record:
    """The record of a fake-quant checkpoint that another project wrote.

    Weights and codes are those of the source to the bit; an activation code may differ by one where x / scale is a
    rounding tie, since the integer layer multiplies by the reciprocal.

    Args:
        reader: one of `READERS`.
        checkpoint: the file as the source writes it; loaded as tensors only.
        float_model: a file of the source's own float weights, or a diffusers folder of the same network.
        settings: what the file does not say.
        masks: `float` or `vote`, for DMQ's channel factors that differ by step.
        component: the denoiser's name in a pipeline's folder that has several.

    Raises:
        OptionError: unknown reader, or settings that contradict the file or that diffusers cannot express.
        FileProblemError: a file that is missing, damaged, unsafe, or of another layout; wrong shapes, NaN scales.
    """
    if reader not in READERS:
        raise OptionError(f"`reader` got {reader!r}, expected one of {', '.join(READERS)}")
    if masks not in CHOICES:
        raise OptionError(f"`masks` got {masks!r}, expected one of {', '.join(CHOICES)}")
    checkpoint, float_model = Path(checkpoint), Path(float_model)
    network = _network(settings)
    _check_names(settings, network)
    held = load_checkpoint(checkpoint)
    floats = load_float_model(float_model, network.architecture, network.module, component=component)
    source = Source(
        checkpoint=held,
        name=checkpoint.name,
        float_state=floats.state,
        architecture=network.architecture,
        layers=network.layers(),
        shapes=network.shapes,
        splits=network.splits,
        settings=settings,
    )
    module = importlib.import_module(f"dq_deploy.readers.formats.{reader.replace('-', '_')}")
    read: Callable[[Source], ForeignModel] = module.read
    model = read(source)
    check_activations(model.layers)
    assembled = _Assembled()
    _assemble(model, network, settings, assembled, masks)
    if not assembled.layers:
        reason, names = max(assembled.kept_float.items(), key=lambda item: len(item[1]), default=("it has none", []))
        others = len(assembled.kept_float) - 1
        more = f"; {others} other reasons for the rest" if others else ""
        raise FileProblemError(
            f"{checkpoint.name}: no layer has an exact integer form: {reason} ({len(names)} layers){more}"
        )
    return _record(model, network, settings, assembled, reader, checkpoint, float_model, floats)


def _network(settings: Settings) -> _Network:
    architecture = architecture_of(settings)
    try:
        module = models.build_denoiser(architecture.family, architecture.config, device="meta")
    except ModelError as error:
        raise OptionError(f"settings: architecture: {error}") from error
    call = models.default_call(architecture.config)
    sites = {site.name: site for site in models.quantizable_layers(module, call)}
    known = models.skip_splits(module, call)
    splits = {p: known[t[0].name] for p, t in architecture.targets.items() if t[0].name in known}
    return _Network(
        architecture=architecture,
        module=module,
        sites=sites,
        shapes={key: tuple(value.shape) for key, value in module.state_dict().items()},
        order=[name for name, _ in module.named_modules()],
        splits=splits,
    )


def _check_names(settings: Settings, network: _Network) -> None:
    """Layers that the settings name are layers of the network."""
    known = set(network.layers())
    for what in ("layer_bits", "float_layers", "splits"):
        unknown = sorted(set(getattr(settings, what)) - known)
        if unknown:
            raise OptionError(
                f"settings: {what} names {few(unknown)}, which the network does not have; layers are named as in the "
                f"source, such as {network.architecture.first}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Assembled:
    """What becomes of each parameter."""

    layers: dict[str, Layer] = field(default_factory=dict)
    parameters: dict[str, Array] = field(default_factory=dict)
    kept_float: dict[str, list[str]] = field(default_factory=dict)
    votes: dict[str, list[int]] = field(default_factory=dict)


def _assemble(model: ForeignModel, network: _Network, settings: Settings, assembled: _Assembled, masks: str) -> None:
    """Put each source module into the record's layers or its float parameters."""
    for path, targets in network.architecture.targets.items():
        names = [t.name for t in targets]
        weight = model.state.get(f"{path}.weight")
        reason = model.floats.get(path, "")
        if path in settings.float_layers:
            reason = "the settings leave it in float"
        elif path in model.layers:
            converted = convert(model.layers[path], targets, network.sites, masks=masks)
            reason, weight = converted.reason, converted.weight
            if not reason:
                assembled.layers.update(converted.layers)
                if converted.changed[1]:
                    assembled.votes[path] = list(converted.changed)
                continue
            reason += "; its weight is dequantized"
        if path in network.layers():
            assembled.kept_float.setdefault(reason, []).extend(names)
        for suffix, value in (("weight", weight), ("bias", model.state.get(f"{path}.bias"))):
            if value is None:
                continue
            for target in targets:
                key = f"{target.name}.{suffix}"
                assembled.parameters[key] = moved(value, target, network.shapes[key], key, whole=len(targets))


def _record(
    model: ForeignModel,
    network: _Network,
    settings: Settings,
    assembled: _Assembled,
    reader: str,
    checkpoint: Path,
    float_model: Path,
    floats: FloatModel,
) -> Record:
    history: list[Mapping[str, Any]] = [
        {"stage": "import", "checkpoint": checkpoint.name, "checkpoint_sha256": sha256_of_file(checkpoint)},
        *model.notes,
        {"stage": "layers", "kept_float": assembled.kept_float},
    ]
    if model.dropped:
        reasons = {why: [n for n, w in model.dropped.items() if w == why] for why in model.dropped.values()}
        history.append({"stage": "left out", "attention_quantizers": list(model.dropped), "reasons": reasons})
    if assembled.votes:
        history.append({"stage": "elected channel factors", "changed_of_entries": assembled.votes})
    architecture = network.architecture
    missing = sorted(set(network.shapes) - set(assembled.parameters) - _keys_of(assembled.layers))
    if missing:
        raise FileProblemError(f"{checkpoint.name} and the float model leave {few(missing)} without values")
    return Record(
        family=architecture.family,
        layers={name: assembled.layers[name] for name in network.order if name in assembled.layers},
        timesteps=model.timesteps,
        step_edges=model.step_edges,
        float_parameters={key: np.array(value) for key, value in assembled.parameters.items()},
        model_config=architecture.config,
        attention=model.attention,
        call=models.default_call(architecture.config),
        scheduler_config=_scheduler_config(floats, settings),
        provenance={
            "source": str(float_model),
            "source_sha256": floats.sha256,
            "method": f"imported from {reader}",
            "options": {
                "weight_bits": settings.weight_bits,
                "activation_bits": settings.activation_bits,
                "symmetric_activations": settings.symmetric_activations,
                "layer_bits": {name: dict(bits) for name, bits in settings.layer_bits.items()},
                "architecture": settings.family,
            },
            "calibration": {"inputs": 0, "sampler": f"the source's own, in {checkpoint.name}"},
            "history": history,
        },
    )


def _scheduler_config(floats: FloatModel, settings: Settings) -> dict[str, Any] | None:
    """The settings' scheduler before the float folder's; neither may be one that diffusers does not have."""
    if settings.scheduler is not None:
        return dict(settings.scheduler)
    if floats.scheduler_config is not None:
        try:
            build_scheduler(floats.scheduler_config)
        except DqError as error:
            raise ModelError(f"{error}; or write `scheduler:` into the settings") from error
    return floats.scheduler_config


def _keys_of(layers: Mapping[str, Layer]) -> set[str]:
    return {
        f"{name}.{end}"
        for name, layer in layers.items()
        for end in ("weight", "bias")
        if end == "weight" or layer.bias is not None
    }
