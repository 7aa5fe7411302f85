"""A record as the start of more training: that it belongs to the model, and the float weight behind each code.

A record holds codes; training wants a position inside each code's rounding interval. Where the float weight is
known, scaled as the record scaled it, the position is as near to it as the interval allows:

    v[n, k] = clamp( w[n, k] / s_w[n],  w_q[n, k] - HELD,  w_q[n, k] + HELD )        rne(v) = w_q

The factors of folds are read off the record itself, so it does not matter which method found them: of a norm by
dividing what was by what is, of a linear producer by least squares over each row's weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dq_deploy.errors import OptionError
from dq_deploy.methods.layer_bits import LayerBits
from dq_deploy.methods.options import QuestOptions, SharedOptions
from dq_deploy.methods.prepare.dilation import scale_input_channels
from dq_deploy.methods.prepare.preparation import PreparedLayer
from dq_deploy.methods.training.trainable import CentredCodes, TrainableLayer
from dq_deploy.models import (
    Denoiser,
    FoldSite,
    LayerSite,
    denoiser_from_record,
    fold_sites,
    quantizable_layers,
)
from dq_deploy.models.pipeline.scheduler_values import check_trained_values, differences
from dq_deploy.models.rebuild import dequantized_weight
from dq_deploy.numerics.arrays import F32, F64, I64
from dq_deploy.record import Layer, Record
from dq_deploy.simulation.fake_quant import IntegerLayer, StepContext, along, per_sample, replace_layer

HELD = 0.49
"""Share of a code within which a position surely rounds to it, whatever float32 does to it."""

FOLDED = "folded into"
"""Start of a layer's `fold` where its producer took the factor over."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InitialState:
    """A record about to be trained.

    Attributes:
        record: as it is.
        layers: those that can be trained, with weights that give the record's codes, by name in the record's order.
        frozen: why the other integer layers stay as they are, by name.
        output_factors: [C_out] that a fold multiplied a layer's output with, by name; others' outputs are the float
            model's own.
    """

    record: Record
    layers: Mapping[str, PreparedLayer]
    frozen: Mapping[str, str]
    output_factors: Mapping[str, F32]


def options_of_initial(record: Record, denoiser: Denoiser, options: QuestOptions) -> QuestOptions:
    """Options that say of bits and quantizers what the record has; training changes none of them.

    Bits left at their defaults are the record's most frequent; any others must be those.

    Raises:
        OptionError: the record is of another model, has no integer layer, or differs from what was asked for.
    """
    _check_model(record, denoiser)
    if not record.layers:
        raise OptionError("the initial record has no integer layers, expected some to finetune; give another `init`")
    for name in ("keep", "layer_bits", "budget", "activation_budget"):
        if getattr(options, name):
            raise OptionError(
                f"{name} was given with an initial record, which decides the bits of every layer; leave it out"
            )
    found = _quantizers_of(record)
    for name in ("weight_bits", "activation_bits"):
        asked = getattr(options, name)
        if asked not in (getattr(SharedOptions, name), found[name]):
            raise OptionError(f"{name} is {asked}, the initial record has {found[name]}; leave it out or give another")
    for name in ("split_skips", "asymmetric_weights", "symmetric_activations", "static"):
        if getattr(options, name) and not found[name]:
            raise OptionError(f"{name} was asked for, the initial record has none of it; leave it out or give another")
    groups = found.pop("step_groups")
    if options.step_groups not in (None, groups):
        raise OptionError(
            f"step_groups is {options.step_groups}, the initial record has {groups}; leave it out or give another"
        )
    found["step_groups"] = None if found["static"] or groups == record.steps else groups
    return replace(options, **found)


def _check_model(record: Record, denoiser: Denoiser) -> None:
    if record.family != denoiser.family:
        raise OptionError(f"the initial record is of family {record.family}, the model of {denoiser.family}")
    theirs = record.provenance.get("source_sha256")
    if theirs is not None and theirs != denoiser.source_sha256:
        raise OptionError(
            f"the initial record was made from {record.provenance.get('source', 'another model')} with hash "
            f"{str(theirs)[:12]}, this model has {denoiser.source_sha256[:12]}; expected a record of this model"
        )
    check_trained_values(
        differences(record.scheduler_config, denoiser.scheduler_config),
        f"the scheduler of {denoiser.source}",
        "give a record of this model, or the pipeline that it was quantized in",
    )
    sites = {site.name: site for site in quantizable_layers(denoiser.module, denoiser.call)}
    for name, layer in record.layers.items():
        site = sites.get(name)
        if site is None:
            raise OptionError(f"the initial record has layer {name}, which the model has not; give a record of it")
        mine = (site.kind, site.out_channels, site.in_channels, site.kernel)
        if (layer.kind, layer.out_channels, layer.in_channels, layer.kernel) != mine:
            raise OptionError(
                f"layer {name} of the initial record has {layer.out_channels} outputs and {layer.in_channels} inputs, "
                f"the model's {site.out_channels} and {site.in_channels}; give a record of this model"
            )


def _quantizers_of(record: Record) -> dict[str, Any]:
    """What a record's options must have been, read off its layers."""
    bits: Counter[tuple[int, int]] = Counter()
    for layer in record.layers.values():
        bits[layer.weight_bits, layer.activation_bits] += sum(part.w_code[0].size for part in layer.parts)
    (weight_bits, activation_bits), _ = bits.most_common(1)[0]
    parts = [part for layer in record.layers.values() for part in layer.parts]
    groups = groups_of_record(record)
    return {
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "split_skips": any(len(layer.parts) == 2 for layer in record.layers.values()),
        "asymmetric_weights": any(bool(part.w_zero_point.any()) for part in parts),
        "symmetric_activations": all(layer.q_min < 0 for layer in record.layers.values()),
        "static": record.steps > 1 and int(groups.max()) == 0,
        "step_groups": int(groups.max()) + 1,
    }


def groups_of_record(record: Record) -> I64:
    """Group of each step, [T] from 0: neighbouring steps that share every activation quantizer of the record."""
    change = np.zeros(record.steps, bool)
    for layer in record.layers.values():
        for part in layer.parts:
            if part.steps > 1:
                change[1:] |= (np.diff(part.scale) != 0) | (np.diff(part.zero_point) != 0)
    return np.cumsum(change).astype(np.int64)


def check_timesteps(record: Record, timesteps: F32) -> None:
    """Refuse calibration at timesteps that are not the record's.

    Raises:
        OptionError: they differ in number or value.
    """
    if np.array_equal(record.timesteps, timesteps):
        return

    def words(values: F32) -> str:
        return f"{len(values)} steps (timesteps {values[0]:g} to {values[-1]:g})"

    advice = f"give `steps={record.steps}`"
    if len(timesteps) == record.steps:
        advice = "give the scheduler and the settings that the record was calibrated with"
    raise OptionError(
        f"calibration visits {words(timesteps)}, the initial record has {words(record.timesteps)}; expected the same, "
        f"{advice}"
    )


def initial_state(record: Record, denoiser: Denoiser) -> InitialState:
    """A record's layers as training takes them; both belong together, see `options_of_initial`."""
    sites = {site.name: site for site in quantizable_layers(denoiser.module, denoiser.call)}
    inputs, outputs = _fold_factors(record, denoiser)
    layers, frozen = {}, {}
    for name, layer in record.layers.items():
        reason = _frozen_because(layer)
        if reason:
            frozen[name] = reason
            continue
        weight = _scaled_weight(denoiser, name, layer, inputs, outputs)
        layers[name] = _prepared(sites[name], layer, weight)
    return InitialState(record=record, layers=layers, frozen=frozen, output_factors=outputs)


def _frozen_because(layer: Layer) -> str:
    for part in layer.parts:
        if part.w_code.shape[0] > 1:
            return f"{part.w_code.shape[0]} weight sets by step"
        if part.zero_point.min() < layer.q_min or part.zero_point.max() > layer.q_max:
            return "zero points outside the code range"
    return ""


def _float_weight(denoiser: Denoiser, name: str) -> F32:
    weight: F32 = denoiser.module.get_submodule(name).weight.detach().numpy()
    return weight


def _fold_factors(record: Record, denoiser: Denoiser) -> tuple[dict[str, F64], dict[str, F32]]:
    """Factors on input channels by consumer, and on output channels by quantized producer, of every fold done."""
    inputs: dict[str, F64] = {}
    outputs: dict[str, F32] = {}
    for site in fold_sites(denoiser.module, denoiser.call):
        folded = [n for n in site.consumers if n in record.layers and record.layers[n].fold.startswith(FOLDED)]
        if not folded:
            continue
        channels = record.layers[folded[0]].in_channels
        if site.kind.endswith("norm"):
            factor = _norm_factor(record, denoiser, site.producer)
        else:
            factor = _row_factor(record, denoiser, site, inputs)[:channels]
            whole = np.ones(len(_float_weight(denoiser, site.producer)), np.float32)
            whole[:channels] = 1 / factor
            outputs[site.producer] = whole
        for name in folded:
            inputs[name] = inputs.get(name, np.ones(channels)) * factor
    return inputs, outputs


def _norm_factor(record: Record, denoiser: Denoiser, producer: str) -> F64:
    """What a norm's weight was divided by; of a zero weight the bias tells, and where both are zero nothing does."""
    norm = denoiser.module.get_submodule(producer)
    factor = np.ones(len(record.float_parameters[f"{producer}.weight"]))
    for name in ("bias", "weight"):
        before = getattr(norm, name).detach().numpy().astype(np.float64)
        after = np.asarray(record.float_parameters[f"{producer}.{name}"], np.float64)
        known = (before * after > 0) & np.isfinite(before / np.where(after == 0, 1, after))
        factor[known] = before[known] / after[known]
    return factor


def _row_factor(record: Record, denoiser: Denoiser, site: FoldSite, inputs: Mapping[str, F64]) -> F64:
    """What each row of a linear producer was divided by: least squares between its weights before and after."""
    name = site.producer
    before = _float_weight(denoiser, name)
    if name in record.layers:
        after = dequantized_weight(record.layers[name])
    elif name in record.weight_only:
        after = record.weight_only[name].weight()
    else:
        after = np.asarray(record.float_parameters[f"{name}.weight"], np.float32)
    before = scale_input_channels(before, inputs.get(name, np.ones(before.shape[1])))
    a = before.reshape(len(before), -1).astype(np.float64)
    b = after.reshape(len(after), -1).astype(np.float64)
    share, norm = (a * b).sum(1), (a * a).sum(1)
    good = (share > 0) & (norm > 0)
    return np.where(good, norm / np.where(good, share, 1), 1.0)


def _scaled_weight(
    denoiser: Denoiser, name: str, layer: Layer, inputs: Mapping[str, F64], outputs: Mapping[str, F32]
) -> F32:
    """The float weight with the record's equivalent scales in it, moved to where it gives the record's codes."""
    weight = _float_weight(denoiser, name)
    pre = np.concatenate([part.pre for part in layer.parts]).astype(np.float64)
    scaled = scale_input_channels(weight, inputs.get(name, np.ones(layer.in_channels)) / pre, layer.groups)
    if name in outputs:
        scaled = scaled * outputs[name].reshape((-1,) + (1,) * (scaled.ndim - 1))
    return held_weight(scaled, layer)


def held_weight(weight: NDArray[np.floating], layer: Layer) -> F32:
    """A weight moved, no further than it must be, to where it rounds to a layer's codes."""
    ends = np.cumsum([part.w_code.shape[2] for part in layer.parts])[:-1]
    pieces = []
    for piece, part in zip(np.split(weight, ends, axis=1), layer.parts, strict=True):
        scale = part.weight_scale[0].reshape((-1,) + (1,) * (weight.ndim - 1)).astype(np.float64)
        code = part.q_weight(0).astype(np.float64)
        pieces.append(np.clip(piece / scale, code - HELD, code + HELD) * scale)
    return np.concatenate(pieces, axis=1).astype(np.float32)


def _prepared(site: LayerSite, layer: Layer, weight: F32) -> PreparedLayer:
    bits = LayerBits(
        name=layer.name,
        weight_bits=layer.weight_bits,
        activation_bits=layer.activation_bits,
        reason="as the initial record",
    )
    return PreparedLayer(
        site=site,
        bits=bits,
        widths=tuple(len(part.pre) for part in layer.parts),
        pre=np.concatenate([part.pre for part in layer.parts]),
        weight=weight,
        bias=layer.bias,
        fold=layer.fold,
        folded=layer.folded,
    )


class PassingLayer(IntegerLayer):
    """An integer layer that stays as it is and lets gradients through where its codes were not clamped."""

    def _codes(self, i: int, x: torch.Tensor, axis: int) -> torch.Tensor:
        batch = x.shape[0]
        z = per_sample(self.context.rows(getattr(self, f"zero_point_{i}"), batch), x.ndim)
        inverse = self.context.rows(getattr(self, f"inverse_{i}"), batch)
        m = along(inverse[:, None] * getattr(self, f"pre_{i}")[None, :], x.ndim, axis)
        codes: torch.Tensor = CentredCodes.apply(x, m, z, self.layer.q_min, self.layer.q_max)
        return codes


def working_module(
    point: InitialState, selected: Collection[str], spread: Mapping[str, float], context: StepContext
) -> tuple[torch.nn.Module, dict[str, TrainableLayer]]:
    """The record's denoiser with trainable layers in place, and those by name; it gives what the record gives.

    Args:
        point: the record and its layers.
        selected: layers whose weights move; the others' are fixed, their activation quantizers are not.
        spread: about the standard deviation of a layer's output, for those whose bias is trained.
        context: step of each sample in flight.
    """
    record = point.record
    module = denoiser_from_record(record, dequantize=False).eval().requires_grad_(False)
    groups = groups_of_record(record)
    layers = {}
    for name, layer in record.layers.items():
        if name in point.frozen:
            replace_layer(module, name, PassingLayer(layer, context))
            continue
        kind = "straight-through" if name in selected else "fixed"
        unit = spread.get(name, 1.0)
        layers[name] = TrainableLayer(point.layers[name], layer, unit, context, weights=kind, groups=groups)
        replace_layer(module, name, layers[name])
    for name, light in record.weight_only.items():
        weight = torch.nn.Parameter(torch.from_numpy(light.weight()), requires_grad=False)
        module.get_submodule(name).weight = weight
    return module, layers
