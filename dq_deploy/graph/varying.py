"""Which sizes of a traced graph vary, what they must be multiples of, and which the tracer could only fix."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import gcd
from typing import TYPE_CHECKING

from dq_deploy.record import BATCH

if TYPE_CHECKING:
    import onnx_ir as ir

_KEY = "dq_deploy.varying"
_TRIED = (1, 2, 3, 4, 5, 7, 8, 11, 16)
"""Multiples of a candidate that must all be allowed."""
_NAME = re.compile(r"[A-Za-z_]\w*")
_FUNCTIONS = {"Max": max, "Min": min, "Mod": lambda a, b: a % b}


@dataclass(frozen=True, kw_only=True)
class VaryingSizes:
    """What the sizes of a call may be in one traced graph.

    Attributes:
        traced: each size's number when the graph was traced, the batch left out.
        fixed: sizes that are constants of the graph, with the reason.
        multiples: what a size must be a multiple of, where that is not 1.
    """

    traced: Mapping[str, int] = field(default_factory=dict)
    fixed: Mapping[str, str] = field(default_factory=dict)
    multiples: Mapping[str, int] = field(default_factory=dict)

    def shape(self, shape: Sequence[int | str]) -> tuple[int | str, ...]:
        """A shape of the call with numbers for the sizes that are fixed."""
        return tuple(self.traced[size] if isinstance(size, str) and size in self.fixed else size for size in shape)

    @property
    def notes(self) -> tuple[str, ...]:
        """One line a fixed size."""
        return tuple(f"{name} is fixed at {self.traced[name]}: {why}" for name, why in self.fixed.items())


ALL_VARY = VaryingSizes()
"""Of a graph of which nothing else is known."""


def keep_sizes(model: ir.Model, sizes: VaryingSizes) -> None:
    """Let a traced graph say what its sizes may be; nothing of it is written to a file."""
    model.meta[_KEY] = sizes


def sizes_of(model: ir.Model) -> VaryingSizes:
    """What `keep_sizes` was given for this graph; of a graph without it nothing else is known."""
    found = model.meta.get(_KEY)
    return found if isinstance(found, VaryingSizes) else ALL_VARY


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What the tracer took for granted about the sizes.

    Attributes:
        names: sizes that it speaks of.
        holds: whether it is true of these sizes.
        place: where in the model it was needed, in words; empty where only the tracer needed it.
    """

    names: frozenset[str]
    holds: Callable[[Mapping[str, int]], bool]
    place: str = ""


def admitted(sizes: Mapping[str, int], guards: Iterable[Guard]) -> VaryingSizes:
    """The least multiples of which every guard holds; a size without any is fixed.

    Sizes that only change together, as those of a picture and of a half of it, are tried together, in the proportion
    that they were traced with.

    Args:
        sizes: that the graph was traced with, every guard holding of them.
        guards: equalities that hold in the graph.
    """
    guards = list(guards)
    steps: dict[str, int] = {}
    left: list[str] = []
    for name in sizes:
        step = _step({name: sizes[name]}, sizes, guards)
        if step is None:
            left.append(name)
        else:
            steps[name] = step
    fixed: dict[str, str] = {}
    for group in _linked(left, sizes, guards):
        together = {name: sizes[name] for name in group}
        step = _step(together, sizes, guards) if len(group) > 1 else None
        if step is None:
            fixed |= dict.fromkeys(group, _reason(together, sizes, guards))
        else:
            unit = gcd(*together.values())
            steps |= {name: size // unit * step for name, size in together.items()}
    return VaryingSizes(
        traced={name: size for name, size in sizes.items() if name != BATCH},
        fixed={name: fixed[name] for name in sizes if name in fixed},
        multiples={name: steps[name] for name in sizes if steps.get(name, 1) > 1},
    )


def _step(together: Mapping[str, int], sizes: Mapping[str, int], guards: Sequence[Guard]) -> int | None:
    """The least divisor d of the sizes' common unit such that all multiples of the proportion times d are allowed."""
    unit = gcd(*together.values())
    mine = [guard for guard in guards if guard.names & together.keys()]
    for step in (number for number in range(1, unit + 1) if unit % number == 0):
        tried = ({name: size // unit * step * n for name, size in together.items()} for n in _TRIED)
        scaled = ({**sizes, **changed} for changed in tried if min(changed.values()) > 1)
        if all(guard.holds(at) for at in scaled for guard in mine):
            return step
    return None


def _linked(names: Sequence[str], sizes: Mapping[str, int], guards: Sequence[Guard]) -> list[list[str]]:
    """Groups of sizes of which some guard holds only if they change together."""
    groups = {name: [name] for name in names}
    for name in names:
        for guard in guards:
            partners = _partners(name, guard, sizes) & groups.keys()
            for other in sorted(partners, key=list(sizes).index):
                if groups[other] is not groups[name]:
                    groups[name].extend(groups[other])
                    for member in groups[other]:
                        groups[member] = groups[name]
    return list({id(group): group for group in groups.values()}.values())


def _partners(name: str, guard: Guard, sizes: Mapping[str, int]) -> frozenset[str]:
    """The fewest other sizes that have to be doubled with this one for a guard to hold again."""
    if name not in guard.names or guard.holds({**sizes, name: 2 * sizes[name]}):
        return frozenset()
    others = sorted(guard.names - {name, BATCH})
    for count in range(1, len(others) + 1):
        for chosen in combinations(others, count):
            if guard.holds({**sizes, **{each: 2 * sizes[each] for each in (name, *chosen)}}):
                return frozenset(chosen)
    return frozenset()


def _reason(together: Mapping[str, int], sizes: Mapping[str, int], guards: Sequence[Guard]) -> str:
    """Where the model needs the size that it was traced with."""
    doubled = {**sizes, **{name: 2 * size for name, size in together.items()}}
    broken = [guard.place for guard in guards if guard.names & together.keys() and not guard.holds(doubled)]
    place = next((place for place in broken if place), "")
    return f"the model computes with it in Python, {place}" if place else "the model's shapes do not follow it"


class SizeTexts:
    """Sizes of tensors in a graph as texts, equal where the sizes are.

    The tracer's own texts differ for equal sizes, as `2*((s1 - 1)//2) + 2` and `s1`; here each becomes the first that
    was seen of those that are equal at several sizes, and sizes divided by small numbers are seen first.

    Args:
        sizes: of the graph.
        names: what stands for each symbol of the tracer.
    """

    def __init__(self, sizes: VaryingSizes, names: Mapping[str, str]) -> None:
        self._names = names
        self._at = [_probe(sizes, prime) for prime in (101, 211, 307)]
        free = [name for name in (BATCH, *sizes.traced) if name not in sizes.fixed]
        self._texts: dict[tuple[int, ...], str] = {}
        for divisor in (1, 2, 4, 8, 16, 32):
            for text in (name if divisor == 1 else f"{name}//{divisor}" for name in free):
                self._remember(text)

    def __call__(self, text: str) -> int | str:
        """A tracer's text in the call's names, or the number it is."""
        renamed = _NAME.sub(lambda match: self._names.get(match[0], match[0]), text)
        return self._remember(renamed)

    def _remember(self, text: str) -> int | str:
        values = tuple(value for at in self._at if (value := size_at(text, at)) is not None)
        if len(values) < len(self._at):
            return text
        return self._texts.setdefault(values, text) if _NAME.search(text) else values[0]


def _probe(sizes: VaryingSizes, prime: int) -> dict[str, int]:
    """Sizes that nothing but their names makes equal, and of which nothing but their multiples is even."""
    known = {name: sizes.traced[name] for name in sizes.fixed}
    free = [name for name in (BATCH, *sizes.traced) if name not in sizes.fixed]
    return known | {
        name: sizes.multiples.get(name, 1) * (prime + 1000 * number + 2 * number) for number, name in enumerate(free)
    }


def size_at(size: int | str | None, sizes: Mapping[str, int]) -> int | None:
    """A size of a tensor as a number, or None where it is not known.

    Args:
        size: number, or text in names of sizes.
        sizes: a number for each name.
    """
    if size is None or isinstance(size, int):
        return size
    try:
        value = eval(size, {"__builtins__": {}, **_FUNCTIONS}, dict(sizes))
    except (SyntaxError, NameError, TypeError, ZeroDivisionError):
        return None
    return int(value)
