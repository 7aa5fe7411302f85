"""What each layer of a denoiser depends on: its place between the inputs and the output."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from dq_deploy.models.capture.graph import INPUT, Graph, Value
from dq_deploy.models.layers import CONDITION, EMBEDDING, FIRST, GENERAL, LAST, MODULATION


@dataclass(frozen=True, kw_only=True)
class Dependence:
    """What the values of a step are made from.

    Attributes:
        inputs: names of the denoiser's inputs behind each value, by its number.
        sample: name of the input that is denoised.
        pooled: names of the inputs of one row a sample: the timestep, labels, pooled embeddings.
    """

    inputs: Mapping[int, frozenset[str]]
    sample: str
    pooled: frozenset[str]

    def of_pooled(self, value: Value) -> bool:
        """Whether a value is made from pooled inputs alone, or from none."""
        return self.inputs[value.number] <= self.pooled

    def is_row(self, layer: Value) -> bool:
        """Whether a layer works on what the sample has no part in, a row a sample, or made from such rows alone."""
        one_row = all(size == 1 for size in layer.args[0].shape[1:-1])
        return self.of_pooled(layer) or (one_row and self.sample not in self.inputs[layer.number])


def dependence_of(graph: Graph, sample: str, pooled: frozenset[str]) -> Dependence:
    """What each value of a step is made from.

    Args:
        graph: the step.
        sample: name of the input that is denoised.
        pooled: names of the inputs of one row a sample.
    """
    inputs: dict[int, frozenset[str]] = {}
    for value in graph.values:
        own = frozenset((value.path,)) if value.kind == INPUT else frozenset()
        inputs[value.number] = own.union(*(inputs[source.number] for source in value.sources))
    return Dependence(inputs=inputs, sample=sample, pooled=pooled)


def _before(layers: Collection[Value]) -> frozenset[int]:
    """Numbers of the values that are read on the way to these."""
    found: set[int] = set()
    waiting = [source for layer in layers for source in layer.sources]
    while waiting:
        value = waiting.pop()
        if value.number not in found:
            found.add(value.number)
            waiting += value.sources
    return frozenset(found)


def _behind(graph: Graph, layers: Collection[Value]) -> frozenset[int]:
    """Numbers of the values that are made from these, themselves included."""
    found = {layer.number for layer in layers}
    for value in graph.values:
        if any(source.number in found for source in value.sources):
            found.add(value.number)
    return frozenset(found)


def roles_of(graph: Graph, dependence: Dependence) -> dict[str, str]:
    """The role of each layer by its path.

    - `embedding`: the sample has no part in its input, which is a row a sample, and other such layers read it:
      timestep and pooled embeddings.
    - `modulation`: the same, and no other such layer reads it: shift, scale and gate of a block, a residual block's
      projection of the time embedding.
    - `condition`: depends neither on the sample nor on the timestep, so it is the same at every step: text keys and
      values, text projections.
    - `first`: the first layer that the sample goes through.
    - `last`: no layer stands between it and the output.
    - `general`: all others.

    Args:
        graph: the step.
        dependence: what its values are made from.
    """
    rows = [layer for layer in graph.layers if dependence.is_row(layer)]
    to_rows, to_layers = _before(rows), _before(graph.layers)
    of_sample = [layer for layer in graph.layers if dependence.sample in dependence.inputs[layer.number]]
    behind_sample = _behind(graph, of_sample)
    roles: dict[str, str] = {}
    for layer in graph.layers:
        inputs = dependence.inputs[layer.number]
        if dependence.is_row(layer):
            role = EMBEDDING if layer.number in to_rows or not inputs else MODULATION
        elif not inputs & {dependence.sample, "timestep"}:
            role = CONDITION
        elif dependence.sample in inputs and layer.args[0].number not in behind_sample:
            role = FIRST
        else:
            role = GENERAL if layer.number in to_layers else LAST
        roles.setdefault(layer.path, role)
    return roles
