"""The float model a method works on: bits decided, dilation computed, folds done."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from dq_deploy.errors import OptionError
from dq_deploy.methods.dilation import common_dilation, dilation_of, scale_input_channels
from dq_deploy.methods.options import LayerPlan, QuantizeOptions, plan_layers
from dq_deploy.models import (
    Denoiser,
    FoldSite,
    LayerSite,
    fold_refusals,
    fold_sites,
    quantizable_layers,
    skip_splits,
)
from dq_deploy.numerics import F32

F64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedLayer:
    """A layer about to be quantized.

    The integer layer computes `(x * pre) @ weight.T + bias`; `pre` is one over the dilation that was not
    folded into the producer.

    Attributes:
        site: name, kind and geometry.
        plan: bits.
        widths: input channels of each part.
        pre: [C_in] float32.
        weight: [C_out, C_in / groups, ...] float32, with every dilation in it.
        bias: [C_out] float32 or None.
        fold: the fold decision in words.
    """

    site: LayerSite
    plan: LayerPlan
    widths: tuple[int, ...]
    pre: F32
    weight: F32
    bias: F32 | None
    fold: str

    @property
    def weight_bits(self) -> int:
        """Bits of the weights."""
        assert self.plan.weight_bits is not None
        return self.plan.weight_bits

    @property
    def activation_bits(self) -> int:
        """Bits of the activations."""
        assert self.plan.activation_bits is not None
        return self.plan.activation_bits

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
        module: a copy of the denoiser's module, same float function, folds done.
        layers: layers to quantize, by name, in execution order.
        plans: bits of every quantizable layer, float ones included.
    """

    module: torch.nn.Module
    layers: Mapping[str, PreparedLayer]
    plans: Mapping[str, LayerPlan]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fold:
    site: FoldSite
    factor: F64


def prepare(denoiser: Denoiser, options: QuantizeOptions, *, dilate: bool = False) -> Prepared:
    """Decide bits, compute dilations, and fold those that may be folded.

    Args:
        denoiser: the float model; it is not changed.
        options: which layers get which bits, split skips, the dilation bound.
        dilate: compute weight dilation; otherwise `pre` is one everywhere.

    Raises:
        OptionError: patterns that match nothing, or options that contradict each other.
    """
    sites = {site.name: site for site in quantizable_layers(denoiser.module, denoiser.config)}
    plans = plan_layers(list(sites), options)
    module = copy.deepcopy(denoiser.module).eval().requires_grad_(False)
    splits = skip_splits(module) if options.split_skips else {}
    if options.split_skips and not splits:
        raise OptionError("--split-skips was given, expected a model with skip concatenations; leave it out")
    chosen = [name for name in sites if not plans[name].is_float]
    factors = {name: _dilation(module, sites[name], splits, options, dilate) for name in chosen}
    reasons = fold_refusals(module)
    folds: list[_Fold] = []
    for site in fold_sites(module):
        reason = _refusal(module, site, factors)
        if reason is None:
            shared = common_dilation([factors[name] for name in site.consumers])
            folds.append(_Fold(site=site, factor=shared))
        reasons.update(dict.fromkeys(site.consumers, reason or f"folded into {site.producer}"))
    for fold in folds:
        _apply_fold(module, fold, sites)
    folded = {name for fold in folds for name in fold.site.consumers}
    layers = {}
    for name in chosen:
        left = np.ones_like(factors[name]) if name in folded else factors[name]
        layers[name] = _layer(module, sites[name], plans[name], splits, left, reasons[name], dilate)
    return Prepared(module=module, layers=layers, plans=plans)


def _weight(module: torch.nn.Module, name: str) -> F32:
    return module.get_submodule(name).weight.detach().numpy()  # type: ignore[union-attr, operator, no-any-return]


def _widths(site: LayerSite, splits: Mapping[str, int]) -> tuple[int, ...]:
    if site.name in splits and site.groups == 1:
        return (splits[site.name], site.in_channels - splits[site.name])
    return (site.in_channels,)


def _dilation(
    module: torch.nn.Module,
    site: LayerSite,
    splits: Mapping[str, int],
    options: QuantizeOptions,
    dilate: bool,
) -> F64:
    """Dilation of a layer, each part within its own weight range."""
    if not dilate:
        return np.ones(site.in_channels)
    pieces = np.split(_weight(module, site.name), np.cumsum(_widths(site, splits))[:-1], axis=1)
    return np.concatenate([dilation_of(w, bound=options.dilation_bound, groups=site.groups) for w in pieces])


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
        scaled = np.abs(v / shared.reshape((-1,) + (1,) * (v.ndim - 1)))
        if bool(((scaled > 0) & (scaled < limit) & (np.abs(v) >= limit)).any()):
            return f"not folded into {site.producer}: its {name} would leave float32's normal range"
    return None


def _apply_fold(module: torch.nn.Module, fold: _Fold, sites: Mapping[str, LayerSite]) -> None:
    """Divide the producer by the factor and multiply every consumer's weight; the float function stays."""
    producer = module.get_submodule(fold.site.producer)
    for parameter in (producer.weight, producer.bias):
        if parameter is not None:
            assert isinstance(parameter, torch.Tensor)
            v = parameter.detach().numpy().astype(np.float64)
            scaled = v / fold.factor.reshape((-1,) + (1,) * (v.ndim - 1))
            parameter.data = torch.from_numpy(scaled.astype(np.float32))
    for name in fold.site.consumers:
        layer = module.get_submodule(name)
        weight = scale_input_channels(_weight(module, name), fold.factor, sites[name].groups)
        layer.weight.data = torch.from_numpy(weight)  # type: ignore[union-attr]


def _layer(
    module: torch.nn.Module,
    site: LayerSite,
    plan: LayerPlan,
    splits: Mapping[str, int],
    factor: F64,
    reason: str,
    dilate: bool,
) -> PreparedLayer:
    bias = module.get_submodule(site.name).bias
    fold = reason if dilate else "nothing to fold: no equivalent scale"
    if dilate and not reason.startswith(("folded", "not folded")):
        fold = f"multiplied at run time: {reason}"
    pre = (1.0 / factor).astype(np.float32)
    # the weight takes the reciprocal of the float32 value that x is multiplied with
    weight = scale_input_channels(_weight(module, site.name), 1.0 / pre.astype(np.float64), site.groups)
    return PreparedLayer(
        site=replace(site),
        plan=plan,
        widths=_widths(site, splits),
        pre=pre,
        weight=weight,
        bias=None if bias is None else np.array(bias.detach().numpy(), np.float32),  # type: ignore[operator]
        fold=fold,
    )


def fold_decisions(denoiser: Denoiser) -> dict[str, str]:
    """Whether an equivalent scale of each layer could be folded into its producer, in words."""
    words = {name: f"no: {reason}" for name, reason in fold_refusals(denoiser.module).items()}
    for site in fold_sites(denoiser.module):
        words.update(dict.fromkeys(site.consumers, f"into {site.producer}"))
    return words
