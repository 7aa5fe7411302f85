"""What a denoiser is made of, found in one run on shapes alone: layers, their work and roles, folds, splits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dq_deploy.models.capture.dependence import dependence_of, roles_of
from dq_deploy.models.capture.folds import FoldSearch, fold_refusals, fold_sites
from dq_deploy.models.capture.graph import ATTENTION, STATE, Graph, Value
from dq_deploy.models.capture.splits import skip_splits
from dq_deploy.models.layers import FoldSite, LayerSite, Macs, is_quantizable, window_of

PROBE_BATCH = 13
"""Samples of the run: a number that no model has as another size, so that the batch is recognized."""

_NO_INTEGER_FORM = (
    torch.nn.Conv1d,
    torch.nn.Conv2d,
    torch.nn.Conv3d,
    torch.nn.ConvTranspose1d,
    torch.nn.ConvTranspose2d,
    torch.nn.ConvTranspose3d,
    torch.nn.Linear,
    torch.nn.Bilinear,
    torch.nn.MultiheadAttention,
    torch.nn.RNNBase,
)
_PRODUCTS = ("aten.bmm", "aten.mm", "aten.addmm", "aten.baddbmm", "aten.mv", "aten.dot")
_CONVOLUTIONS = ("aten.convolution", "aten._convolution")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a denoiser is made of when it is called in one way.

    Attributes:
        sites: linear layers and 2-D convolutions in execution order, shapes at `PROBE_BATCH` samples.
        macs: work of one sample.
        other_layers: why a layer that is none of the sites stays float, by its path.
        splits: channels of the first tensor of each layer's concatenated input.
        folds: legal folds in execution order.
        refusals: why there is none, by the path of each other layer.
        shared_inputs: layers that read one tensor, two or more, as queries, keys and values do, in execution order.
        runs: how often each module's forward runs, by path, in the order of the first time.
    """

    sites: tuple[LayerSite, ...]
    macs: Macs
    other_layers: Mapping[str, str]
    splits: Mapping[str, int]
    folds: tuple[FoldSite, ...]
    refusals: Mapping[str, str]
    shared_inputs: tuple[tuple[str, ...], ...]
    runs: Mapping[str, int]


def facts_of(module: torch.nn.Module, graph: Graph, *, sample: str, pooled: frozenset[str]) -> Facts:
    """What a graph of a denoiser's step says.

    Args:
        module: the denoiser.
        graph: its step with `PROBE_BATCH` samples.
        sample: name of the input that is denoised.
        pooled: names of the inputs of one row a sample: the timestep, labels, pooled embeddings.
    """
    modules = dict(module.named_modules())
    dependence = dependence_of(graph, sample, pooled)
    search = FoldSearch(graph=graph, dependence=dependence, modules=modules)
    roles = roles_of(graph, dependence)
    floats = _float_reasons(graph)
    firsts = {layer.path: layer for layer in reversed(graph.layers)}
    order = dict.fromkeys(layer.path for layer in graph.layers)
    runs = Counter(layer.path for layer in graph.layers)
    sites = tuple(
        _site(firsts[path], modules[path], runs[path], role=roles[path], float_reason=floats.get(path, ""))
        for path in order
    )
    folds = fold_sites(search)
    return Facts(
        sites=sites,
        macs=_macs(graph, sites),
        other_layers=_other_layers(modules, set(order), graph.runs),
        splits=skip_splits(search),
        folds=tuple(folds),
        refusals=fold_refusals(search, folds),
        shared_inputs=_shared_inputs(graph),
        runs=graph.runs,
    )


def _shared_inputs(graph: Graph) -> tuple[tuple[str, ...], ...]:
    """Paths of the layers behind each tensor that several read; a layer that runs more than once is in none."""
    runs = Counter(layer.path for layer in graph.layers)
    readers: dict[int, list[str]] = {}
    for layer in graph.layers:
        if runs[layer.path] == 1:
            readers.setdefault(layer.args[0].number, []).append(layer.path)
    return tuple(tuple(paths) for paths in readers.values() if len(paths) > 1)


def _float_reasons(graph: Graph) -> dict[str, str]:
    """Why a layer that has an integer form stays float all the same, by its path."""
    runs = Counter(layer.path for layer in graph.layers)
    read = {value.path for value in graph.values if value.kind == STATE}
    needed = _needed(graph)
    reasons = {}
    for layer in graph.layers:
        if runs[layer.path] > 1:
            reasons[layer.path] = f"it runs {runs[layer.path]} times in a step, and ranges are of one run"
        elif {f"{layer.path}.weight", f"{layer.path}.bias"} & read:
            reasons[layer.path] = "its weight is read outside of the layer too"
        elif layer.args[0].shape[0] % PROBE_BATCH:
            reasons[layer.path] = "the leading axis of its input does not hold the samples, which have a step each"
        elif layer.number not in needed:
            reasons[layer.path] = "nothing that the denoiser gives is made from it"
    return reasons


def _needed(graph: Graph) -> set[int]:
    """Numbers of the values that the outputs are made from."""
    needed: set[int] = set()
    waiting = list(graph.outputs)
    while waiting:
        value = waiting.pop()
        if value.number not in needed:
            needed.add(value.number)
            waiting += value.sources
    return needed


def _site(value: Value, layer: torch.nn.Module, runs: int, *, role: str, float_reason: str) -> LayerSite:
    shapes = {"input_shape": value.args[0].shape, "output_shape": value.shape}
    elements = runs * math.prod(value.shape)
    if isinstance(layer, torch.nn.Linear):
        return LayerSite(
            name=value.path,
            kind="linear",
            in_channels=layer.in_features,
            out_channels=layer.out_features,
            kernel=(),
            stride=(1, 1),
            padding=(0, 0, 0, 0),
            dilation=(1, 1),
            groups=1,
            macs=_of_one_sample(elements * layer.in_features),
            role=role,
            float_reason=float_reason,
            **shapes,
        )
    assert isinstance(layer, torch.nn.Conv2d)
    window = window_of(layer)
    rows, columns = window.kernel
    return LayerSite(
        name=value.path,
        kind="conv2d",
        in_channels=layer.in_channels,
        out_channels=layer.out_channels,
        kernel=window.kernel,
        stride=window.stride,
        padding=window.padding,
        dilation=window.dilation,
        groups=layer.groups,
        macs=_of_one_sample(elements * (layer.in_channels // layer.groups) * rows * columns),
        role=role,
        float_reason=float_reason,
        **shapes,
    )


def _of_one_sample(work: int) -> int:
    """The work that one sample adds; what all samples share counts in full."""
    return work if work % PROBE_BATCH else work // PROBE_BATCH


def _macs(graph: Graph, sites: tuple[LayerSite, ...]) -> Macs:
    attention = other = 0
    parameters: set[int] = set()  # values made of the model's own numbers alone
    for value in graph.values:
        if value.kind == STATE or (value.sources and all(one.number in parameters for one in value.sources)):
            parameters.add(value.number)
        if value.kind == ATTENTION:
            queries, keys, values = (one.shape for one in value.args[:3])
            attention += _of_one_sample(math.prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1]))
        elif value.kind in _PRODUCTS:
            left, right = value.sources[-2:]
            work = _of_one_sample(math.prod(value.shape) * left.shape[-1])
            if left.number in parameters or right.number in parameters:
                other += work
            else:
                attention += work
        elif value.kind in _CONVOLUTIONS:
            x, weight = value.sources[:2]
            places = x.shape if value.args[6] else value.shape  # a transposed one multiplies each input
            other += _of_one_sample(math.prod(places) * math.prod(weight.shape[1:]))
    layers = {site.name: site.macs for site in sites}
    total = sum(layers.values())
    return Macs(of_all=total + attention + other, of_quantizable=total, attention=attention, other=other, layers=layers)


def _other_layers(modules: Mapping[str, torch.nn.Module], known: set[str], runs: Mapping[str, int]) -> dict[str, str]:
    """Why the layers with weights that are no sites stay float, by path."""
    found = {}
    for path, child in modules.items():
        if path in known or not isinstance(child, _NO_INTEGER_FORM):
            continue
        if path not in runs:
            found[path] = "it does not run when the denoiser is called so"
        elif is_quantizable(child):
            found[path] = "its input is of another type or another number of axes than a layer's"
        elif isinstance(child, torch.nn.Conv2d) and type(child).forward is torch.nn.Conv2d.forward:
            found[path] = f"it pads with mode {child.padding_mode!r} and size {child.padding!r}, no integer form"
        else:
            found[path] = f"it is a {type(child).__name__}, which has no integer form"
    return found
