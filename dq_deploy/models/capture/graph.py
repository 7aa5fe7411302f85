"""A denoiser's step as a list of values: which operation made each, and from which others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

INPUT, STATE, LAYER, NORM, ATTENTION, WRITE = "input", "state", "layer", "norm", "attention", "write"
"""Kinds of values that no operation of torch makes: see `Value.kind`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Value:
    """A tensor of the step.

    Attributes:
        number: place in the order of execution.
        kind: `INPUT` of the denoiser; `STATE`, a parameter or buffer read outside of the layers; `LAYER`, the output of
            a linear layer or 2-D convolution; `NORM`, of a norm with factors of its own; `ATTENTION`, of the products;
            `WRITE`, something that was written to in place through another view of it; else torch's operation, as
            `aten.silu`.
        path: name of the input, state-dict key, or module path of the layer or norm.
        call: torch's operation, None for the kinds above.
        args: its arguments in order, values in the place of tensors; of a layer or norm the value it receives, of an
            attention queries, keys, values and the mask.
        kwargs: its arguments by name.
        part: which of several outputs this is, None where there is one.
        shape: sizes.
    """

    number: int
    kind: str
    shape: tuple[int, ...]
    path: str = ""
    call: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    part: int | None = None

    @cached_property
    def sources(self) -> tuple[Value, ...]:
        """Values that it is made from, in the order of the arguments."""
        return tuple(values_in((self.args, tuple(self.kwargs.values()))))


def values_in(given: object) -> Iterator[Value]:
    """The values in arguments, lists of them opened."""
    if isinstance(given, Value):
        yield given
    elif isinstance(given, (list, tuple)):
        for one in given:
            yield from values_in(one)


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A denoiser's step.

    Attributes:
        values: in the order of execution.
        outputs: what the denoiser returns.
        runs: how often each module's forward ran, by path, in the order of the first time.
    """

    values: tuple[Value, ...]
    outputs: tuple[Value, ...]
    runs: Mapping[str, int]

    @cached_property
    def users(self) -> Mapping[int, tuple[Value, ...]]:
        """The values that are made from each one, by its number."""
        found: dict[int, list[Value]] = {value.number: [] for value in self.values}
        for value in self.values:
            for source in dict.fromkeys(value.sources):
                found[source.number].append(value)
        return {number: tuple(users) for number, users in found.items()}

    @cached_property
    def layers(self) -> tuple[Value, ...]:
        """Outputs of layers, one a run."""
        return tuple(value for value in self.values if value.kind == LAYER)
