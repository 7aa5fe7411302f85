"""What each layer of a denoiser depends on: its place between the inputs and the output."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from dq_deploy.models.capture.graph import INPUT, LAYER, Graph, Value
from dq_deploy.models.layers import CONDITION, EMBEDDING, FIRST, GENERAL, LAST, MODULATION


@dataclass(frozen=True, kw_only=True)
class Dependence:
    """What the values of a step are made from.

    Attributes:
        inputs: names of the denoiser's inputs behind each value, by its number.
        behind_layer: numbers of the values with a layer behind them that is neither embedding nor modulation.
        before_layer: numbers of the values that some layer reads, at once or later.
    """

    inputs: Mapping[int, frozenset[str]]
    behind_layer: frozenset[int]
    before_layer: frozenset[int]


def dependence_of(graph: Graph, pooled: Collection[str]) -> Dependence:
    """What each value of a step is made from.

    Args:
        graph: the step.
        pooled: inputs of one row a sample: the timestep, labels, pooled embeddings.
    """
    inputs: dict[int, frozenset[str]] = {}
    behind: set[int] = set()
    for value in graph.values:
        own = frozenset((value.path,)) if value.kind == INPUT else frozenset()
        inputs[value.number] = own.union(*(inputs[source.number] for source in value.sources))
        of_sample = value.kind == LAYER and not inputs[value.number] <= set(pooled)
        if of_sample or any(source.number in behind for source in value.sources):
            behind.add(value.number)
    return Dependence(inputs=inputs, behind_layer=frozenset(behind), before_layer=_before(graph.layers))


def _before(layers: Collection[Value]) -> frozenset[int]:
    """Values that are read on the way to these."""
    found: set[int] = set()
    waiting = [source for layer in layers for source in layer.sources]
    while waiting:
        value = waiting.pop()
        if value.number not in found:
            found.add(value.number)
            waiting += value.sources
    return frozenset(found)


def roles_of(graph: Graph, dependence: Dependence, pooled: Collection[str], sample: str) -> dict[str, str]:
    """The role of each layer by its path.

    - `embedding`: depends on `pooled` inputs alone, or on none, and other such layers read it: timestep and pooled
      embeddings.
    - `modulation`: depends on `pooled` inputs alone and is read by no other such layer: shift, scale and gate of a
      block, a residual block's projection of the time embedding.
    - `condition`: depends neither on the sample nor on the timestep, so it is the same at every step: text keys and
      values, text projections.
    - `first`: no layer stands between it and the inputs.
    - `last`: no layer stands between it and the output.
    - `general`: all others.

    Args:
        graph: the step.
        dependence: of `dependence_of`.
        pooled: as there.
        sample: name of the input that is denoised.
    """
    rows = set(pooled)
    steady = [layer for layer in graph.layers if dependence.inputs[layer.number] <= rows]
    to_steady = _before(steady)
    roles: dict[str, str] = {}
    for layer in graph.layers:
        inputs = dependence.inputs[layer.number]
        if inputs <= rows:
            role = EMBEDDING if layer.number in to_steady or not inputs else MODULATION
        elif not inputs & {sample, "timestep"}:
            role = CONDITION
        elif not any(source.number in dependence.behind_layer for source in layer.sources):
            role = FIRST
        else:
            role = GENERAL if layer.number in dependence.before_layer else LAST
        roles.setdefault(layer.path, role)
    return roles
