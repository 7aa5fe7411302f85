"""The float model a method works on: bits decided, dilation computed, folds done."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from dq_deploy.errors import OptionError
from dq_deploy.methods.layer_bits import LayerBits, bits_of_sites
from dq_deploy.methods.options import SharedOptions
from dq_deploy.methods.prepare.dilation import common_dilation, dilation_of, scale_input_channels
from dq_deploy.models import (
    Denoiser,
    FoldSite,
    LayerSite,
    fold_refusals,
    fold_sites,
    quantizable_layers,
    skip_splits,
)
from dq_deploy.numerics.arrays import F32, F64
from dq_deploy.record import Call, Fold


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedLayer:
    """A layer about to be quantized.

    The integer layer computes `(x * pre) @ weight.T + bias`; `pre` is one over the dilation that was not
    folded into the producer.

    Attributes:
        site: name, kind and geometry.
        bits: of weights and activations, and why.
        widths: input channels of each part.
        pre: [C_in] float32.
        weight: [C_out, C_in / groups, ...] float32, with every dilation in it; the module's own where that is one.
        bias: [C_out] float32 or None.
        fold: the fold decision in words.
        folded: what the producer took over, or None.
    """

    site: LayerSite
    bits: LayerBits
    widths: tuple[int, ...]
    pre: F32
    weight: F32
    bias: F32 | None
    fold: str
    folded: Fold | None = None

    @property
    def weight_bits(self) -> int:
        """Bits of the weights."""
        assert self.bits.weight_bits is not None
        return self.bits.weight_bits

    @property
    def activation_bits(self) -> int:
        """Bits of the activations."""
        assert self.bits.activation_bits is not None
        return self.bits.activation_bits

    def weight_parts(self) -> list[F32]:
        """The weight of each part, sliced along the input channels."""
        if len(self.widths) == 1:
            return [self.weight]
        return [np.ascontiguousarray(w) for w in np.split(self.weight, np.cumsum(self.widths)[:-1], axis=1)]

    def pre_parts(self) -> list[F32]:
        """`pre` of each part."""
        return list(np.split(self.pre, np.cumsum(self.widths)[:-1]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """The folded float module and its layers.

    Attributes:
        module: the denoiser's module with folds done, same float function, on the device of the options; on the CPU it
            shares every weight no fold changed.
        call: how it is called.
        layers: layers to become integer ones, by name, in execution order.
        bits: of every quantizable layer, weight-only and float ones included.
    """

    module: torch.nn.Module
    call: Call
    layers: Mapping[str, PreparedLayer]
    bits: Mapping[str, LayerBits]


def prepare(denoiser: Denoiser, options: SharedOptions, *, dilation_bound: str | None = None) -> Prepared:
    """Decide bits, compute dilations, and fold those that may be folded.

    Args:
        denoiser: the float model; it is not changed.
        options: which layers get which bits, split skips.
        dilation_bound: of weight dilation, see `dilation_of`; None leaves it out: `pre` is one everywhere.

    Raises:
        OptionError: patterns that match nothing, or options that contradict each other.
    """
    dilate = dilation_bound is not None
    sites = {site.name: site for site in quantizable_layers(denoiser.module, denoiser.call)}
    bits = bits_of_sites(sites.values(), options)
    module = sharing_copy(denoiser.module)
    splits = skip_splits(module, denoiser.call) if options.split_skips else {}
    if options.split_skips and not splits and not options.own.split_skips:  # a method's own choice asks for nothing
        raise OptionError("`split_skips` was given, expected a model with skip concatenations; leave it out")
    chosen = [name for name in sites if bits[name].is_integer]
    factors = {name: _dilation(module, sites[name], splits, dilation_bound) for name in chosen}
    reasons = fold_refusals(module, denoiser.call)
    folded: dict[str, Fold] = {}
    for site in fold_sites(module, denoiser.call):
        # one after another: a value projection is read by one fold and written by the next
        reason = _refusal(module, site, factors) if dilate else "nothing to fold"
        if reason is None:
            factor = common_dilation([factors[name] for name in site.consumers])
            _apply_fold(module, site, factor, sites)
            took = Fold(producer=site.producer, factor=factor.astype(np.float32))
            folded.update(dict.fromkeys(site.consumers, took))
        reasons.update(dict.fromkeys(site.consumers, reason or f"folded into {site.producer}"))
    layers = {}
    for name in chosen:
        left = np.ones_like(factors[name]) if name in folded else factors[name]
        layer = _layer(module, sites[name], bits[name], splits, left, reasons[name], dilate)
        layers[name] = replace(layer, folded=folded.get(name))
    return Prepared(module=module.to(options.device), call=denoiser.call, layers=layers, bits=bits)


def sharing_copy(module: torch.nn.Module) -> torch.nn.Module:
    """The module tree once more around the same weights: a parameter replaced in one leaves the other as it was."""
    shared: dict[int, torch.Tensor] = {id(b): b.detach() for b in module.buffers()}
    shared |= {id(p): torch.nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, shared).eval()


def _weight(module: torch.nn.Module, name: str) -> F32:
    weight: F32 = module.get_submodule(name).weight.detach().numpy()
    return weight


def _widths(site: LayerSite, splits: Mapping[str, int]) -> tuple[int, ...]:
    if site.name in splits and site.groups == 1:
        return (splits[site.name], site.in_channels - splits[site.name])
    return (site.in_channels,)


def _dilation(module: torch.nn.Module, site: LayerSite, splits: Mapping[str, int], bound: str | None) -> F64:
    """Dilation of a layer, each part within its own weight range."""
    if bound is None:
        return np.ones(site.in_channels)
    pieces = np.split(_weight(module, site.name), np.cumsum(_widths(site, splits))[:-1], axis=1)
    return np.concatenate([dilation_of(w, bound=bound, groups=site.groups) for w in pieces])


def _refusal(module: torch.nn.Module, site: FoldSite, factors: Mapping[str, F64]) -> str | None:
    """Why a legal fold is not done here, or None."""
    floats = [name for name in site.consumers if name not in factors]
    if floats:
        return f"not folded into {site.producer}: {', '.join(floats)} stays float and reads the same tensor"
    shared = common_dilation([factors[name] for name in site.consumers])
    producer = module.get_submodule(site.producer)
    limit = np.finfo(np.float32).tiny
    for name in ("weight", "bias"):
        value = getattr(producer, name, None)
        if value is None:
            if name == "weight":
                return f"not folded into {site.producer}: it has no weight"
            continue
        v = value.detach().numpy().astype(np.float64)
        scaled = np.abs(divided_rows(v, shared, site))
        if bool(((scaled > 0) & (scaled < limit) & (np.abs(v) >= limit)).any()):
            return f"not folded into {site.producer}: its {name} would leave float32's normal range"
    return None


def divided_rows(values: F64, factor: F64, site: FoldSite) -> F64:
    """A producer's weight or bias with the rows that the fold concerns divided by the factor.

    Args:
        values: [C] or [C, ...] float64.
        factor: one number a consumer's input channel.
        site: says which rows: all, or for `value_rows` the first half, the value of a GEGLU; its gate passes a GELU
            and must stay.

    Raises:
        OptionError: the producer has another number of such rows than the consumers have channels.
    """
    rows = len(values) // 2 if site.kind == "value_rows" else len(values)
    if rows != len(factor):
        raise OptionError(
            f"{site.producer} gives {rows} channels, expected {len(factor)} as {site.consumers[0]} reads; "
            'this model cannot be dilated, use `method="minmax"`'
        )
    result = values.copy()
    result[:rows] /= factor.reshape((-1,) + (1,) * (values.ndim - 1))
    return result


def _apply_fold(module: torch.nn.Module, site: FoldSite, factor: F64, sites: Mapping[str, LayerSite]) -> None:
    """Divide the producer by the factor and multiply every consumer's weight; the float function stays."""
    producer = module.get_submodule(site.producer)
    for name in ("weight", "bias"):
        value = getattr(producer, name, None)
        if value is not None:
            _replace(producer, name, divided_rows(value.detach().numpy().astype(np.float64), factor, site))
    for name in site.consumers:
        weight = scale_input_channels(_weight(module, name), factor, sites[name].groups)
        _replace(module.get_submodule(name), "weight", weight)


def _replace(owner: torch.nn.Module, name: str, values: NDArray[np.floating]) -> None:
    """A new parameter in the place of one that may be shared with the model as it was given."""
    parameter = torch.nn.Parameter(torch.from_numpy(values.astype(np.float32)), requires_grad=False)
    setattr(owner, name, parameter)


def _layer(
    module: torch.nn.Module,
    site: LayerSite,
    chosen: LayerBits,
    splits: Mapping[str, int],
    factor: F64,
    reason: str,
    dilate: bool,
) -> PreparedLayer:
    bias = module.get_submodule(site.name).bias
    fold = reason if dilate else "nothing to fold: no equivalent scale"
    if dilate and not reason.startswith(("folded", "not folded")):
        fold = f"multiplied at run time: {reason}"
    pre, weight = _divided_input(_weight(module, site.name), factor, site.groups)
    return PreparedLayer(
        site=replace(site),
        bits=chosen,
        widths=_widths(site, splits),
        pre=pre,
        weight=weight,
        bias=None if bias is None else np.array(bias.detach().numpy(), np.float32),
        fold=fold,
    )


def _divided_input(weight: F32, factor: F64, groups: int) -> tuple[F32, F32]:
    """`pre` and weight of a layer whose input is divided by `factor`, [C_in]; the float function stays."""
    pre = (1.0 / factor).astype(np.float32)
    if (pre == 1).all():
        return pre, weight
    # the weight takes the reciprocal of the float32 value that x is multiplied with
    return pre, scale_input_channels(weight, 1.0 / pre.astype(np.float64), groups)


def with_equivalent_scales(prepared: Prepared, scales: Mapping[str, F64], *, kind: str = "learned") -> Prepared:
    """The same float model with some layers' inputs divided, and their weights multiplied, by one factor a channel.

    Nothing is folded into producers: each layer has factors of its own, also where several read one tensor.

    Args:
        prepared: with `pre` one in every layer named.
        scales: [C_in] positive factors by layer name.
        kind: what the scales are, in a word for the fold decision.
    """
    layers = dict(prepared.layers)
    for name, factor in scales.items():
        layer = layers[name]
        assert (layer.pre == 1).all(), f"{name} has an equivalent scale already"
        pre, weight = _divided_input(layer.weight, factor, layer.site.groups)
        fold = f"multiplied at run time: a {kind} scale belongs to one layer, its producer may feed others"
        layers[name] = replace(layer, pre=pre, weight=weight, fold=layer.fold if (pre == 1).all() else fold)
    return replace(prepared, layers=layers)


def fold_decisions(denoiser: Denoiser) -> dict[str, str]:
    """Whether an equivalent scale of each layer could be folded into its producer, in words."""
    words = {name: f"no: {reason}" for name, reason in fold_refusals(denoiser.module, denoiser.call).items()}
    for site in fold_sites(denoiser.module, denoiser.call):
        words.update(dict.fromkeys(site.consumers, f"into {site.producer}"))
    return words
