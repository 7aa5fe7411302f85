"""Which producers may take over `pre` of their readers, and why the others may not; both found in the graph."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dq_deploy.models.capture.channels import (
    ACTIVATIONS,
    COPIES,
    RESIZES,
    VIEWS,
    Reach,
    channel_axis,
    follow,
)
from dq_deploy.models.capture.dependence import Dependence
from dq_deploy.models.capture.graph import ATTENTION, INPUT, LAYER, NORM, STATE, WRITE, Graph, Value
from dq_deploy.models.layers import FoldSite

_SPLITS = ("aten.split", "aten.split_with_sizes")


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldSearch:
    """What folds are looked for in.

    Attributes:
        graph: the step.
        dependence: what its values are made from.
        modules: of the denoiser by path.
    """

    graph: Graph
    dependence: Dependence
    modules: Mapping[str, torch.nn.Module]

    def kind_of(self, value: Value) -> type[torch.nn.Module]:
        """Module class of a layer's or norm's value."""
        return type(self.modules[value.path])

    def may_change(self) -> frozenset[str]:
        """Paths of layers and norms that run once and whose weight nothing else reads."""
        runs = Counter(value.path for value in self.graph.values if value.kind in (LAYER, NORM))
        read = {value.path.rpartition(".")[0] for value in self.graph.values if value.kind == STATE}
        return frozenset(path for path, count in runs.items() if count == 1 and path not in read)


def fold_sites(search: FoldSearch) -> list[FoldSite]:
    """The legal folds in execution order of their producers: every reader is a layer, and nothing else reads.

    - `group_norm`, `layer_norm`: a norm with factors to the layers that read it
    - `linear_rows`: a layer's output to the layers behind what is linear in it: attention's values, which mix tokens
      and never channels, products with other tensors, moved and resized values
    - `value_rows`: the same for the first half of a layer's output where the second half goes its own way: the value
      of a GEGLU, not its gate
    """
    free = search.may_change()
    sites = []
    for value in search.graph.values:
        if value.kind not in (LAYER, NORM) or value.path not in free:
            continue
        for kind, source in _sources(search, value):
            axis = channel_axis(value, search.kind_of(value))
            reach = follow(search.graph, source, axis, search.kind_of, linear=True)
            if reach.layers and not reach.stops and all(layer.path in free for layer in reach.layers):
                consumers = sorted(reach.layers, key=lambda layer: layer.number)
                paths = tuple(layer.path for layer in consumers)
                sites.append(FoldSite(producer=value.path, kind=kind, consumers=paths))
                break
    return sites


def _sources(search: FoldSearch, value: Value) -> list[tuple[str, Value]]:
    """What of a producer may be divided: kind of the fold and the value that is followed."""
    module = search.modules[value.path]
    if value.kind == NORM:
        if getattr(module, "weight", None) is None or (
            isinstance(module, torch.nn.LayerNorm) and len(module.normalized_shape) != 1
        ):
            return []
        return [("group_norm" if isinstance(module, torch.nn.GroupNorm) else "layer_norm", value)]
    axis = channel_axis(value, type(module))
    half = value.shape[axis] / 2
    users = search.graph.users[value.number]
    halves = [user for user in users if user.kind in _SPLITS and user.shape[axis] == half]
    if len(halves) == len(users) == 2 and sorted(user.part or 0 for user in users) == [0, 1]:
        return [("value_rows", next(user for user in users if not user.part))]
    return [("linear_rows", value)]


def fold_refusals(search: FoldSearch, sites: list[FoldSite]) -> dict[str, str]:
    """Reason for every layer of the denoiser that no fold serves, in execution order."""
    folded = {name for site in sites for name in site.consumers}
    reasons: dict[str, str] = {}
    for layer in search.graph.layers:
        if layer.path not in folded:
            reasons.setdefault(layer.path, _reason(search, layer))
    return reasons


def _reason(search: FoldSearch, layer: Value) -> str:
    """Why no producer can take over a layer's `pre`, by what stands in front of it."""
    if layer.path not in search.may_change():
        return "the layer runs more than once in a step, or its weight is read elsewhere too"
    value, resized = layer.args[0], False
    while True:
        if value.kind in VIEWS or value.kind in COPIES or value.kind == WRITE or _is_scaled(value):
            value = value.sources[0]
        elif value.kind in RESIZES:
            value, resized = value.sources[0], True
        elif value.kind == ATTENTION:
            value = value.args[2]
            if _behind_views(value).kind in ("aten.cat", "aten.stack"):
                return "joint attention concatenates the values of two streams, which have a producer each"
        else:
            break
    return _words(search, value, layer, resized)


def _behind_views(value: Value) -> Value:
    while value.kind in VIEWS or value.kind in COPIES:
        value = value.sources[0]
    return value


def _is_scaled(value: Value) -> bool:
    """Whether a value is another one times a number."""
    return value.kind.rstrip("_") in ("aten.mul", "aten.div") and len(value.sources) == 1


def _words(search: FoldSearch, value: Value, layer: Value, resized: bool) -> str:
    inputs = search.dependence.inputs[value.number]
    if value.kind == INPUT:
        return _words_of_input(search, value)
    if search.dependence.of_pooled(layer) and not _has_layer(value):
        if inputs <= {"timestep"}:
            return "input is the sinusoidal embedding of the timestep, there is no producer with weights"
        return f"input is made from {' and '.join(sorted(inputs))} alone, there is no producer with weights"
    if value.kind in ACTIVATIONS:
        return _words_of_activation(search, value, layer)
    if value.kind in (LAYER, NORM):
        return _words_of_producer(search, value)
    norm = _adaptive_norm(search, value)
    if norm:
        return norm
    if value.kind == "aten.cat":
        return "input is a concatenation of several tensors, not one producer"
    if value.kind in ("aten.add", "aten.add_"):
        if resized:
            return "input is the resized sum of a residual addition, not one producer"
        return "input is the residual stream with several consumers"
    return f"{value.kind.removeprefix('aten.')} stands between the layer and what is in front"


def _words_of_input(search: FoldSearch, value: Value) -> str:
    if value.path == search.dependence.sample:
        return "input is the sample itself, there is no producer"
    what = "the text embedding" if value.path.startswith("encoder_hidden_states") else value.path
    return f"input is {what}, there is no producer in the model"


def _words_of_activation(search: FoldSearch, value: Value, layer: Value) -> str:
    name, front = ACTIVATIONS[value.kind], _behind_views(value.sources[0])
    if front.kind in RESIZES:
        front = _behind_views(front.sources[0])
    what = "convolution" if issubclass(search.kind_of(layer), torch.nn.Conv2d) else "layer"
    if front.kind == NORM or _adaptive_norm(search, front):
        return f"{name} stands between the norm and the {what}"
    if front.kind == LAYER and len(search.graph.users[front.number]) == 1:
        return f"{name} stands between the two layers"
    if search.dependence.is_row(layer):
        return f"{name} stands between, and the time embedding has several consumers"
    return f"{name} stands between the {what} and what is in front"


def _words_of_producer(search: FoldSearch, value: Value) -> str:
    """Why a norm or layer right in front cannot take it over."""
    what = "norm" if value.kind == NORM else "layer"
    if value.path not in search.may_change():
        return f"{value.path} in front runs more than once in a step, or its weight is read elsewhere too"
    sources = _sources(search, value)
    if not sources:
        return f"the norm {value.path} in front has no factors of its own, or more than one axis of them"
    axis = channel_axis(value, search.kind_of(value))
    reach: Reach = follow(search.graph, sources[0][1], axis, search.kind_of, linear=True)
    if not reach.stops:
        return f"another reader of the {what} {value.path} runs more than once in a step"
    others = ", ".join(dict.fromkeys(_name_of(stop) for stop in reach.stops[:3]))
    return f"the output of the {what} {value.path} is read by {others} too"


def _name_of(value: Value) -> str:
    if value.path:
        return value.path
    return ACTIVATIONS.get(value.kind, value.kind.removeprefix("aten."))


def _adaptive_norm(search: FoldSearch, value: Value) -> str:
    """The reason where a norm's output was scaled and shifted by what the model computes, else nothing."""
    seen = 0
    while value.kind.rstrip("_") in ("aten.add", "aten.mul", "aten.sub") and value.sources and seen < 4:
        value, seen = _behind_views(max(value.sources, key=lambda one: math.prod(one.shape))), seen + 1
        if value.kind == NORM or value.kind in ("aten.native_layer_norm", "aten.native_group_norm"):
            if value.kind == NORM and getattr(search.modules[value.path], "weight", None) is not None:
                return "the norm's output is scaled and shifted by a modulation: its own factors do not reach the layer"
            return "adaptive norm: scale and shift come from the time embedding, there are no factors to fold into"
    return ""


def _has_layer(value: Value) -> bool:
    waiting, seen = [value], set()
    while waiting:
        one = waiting.pop()
        if one.kind == LAYER:
            return True
        if one.number not in seen:
            seen.add(one.number)
            waiting += one.sources
    return False
