"""Where each module of a source's network lies in diffusers, and what is said about the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any, NoReturn

import numpy as np

from dq_deploy.errors import OptionError
from dq_deploy.numerics.arrays import I64

LARGEST, MOST_LEVELS, MOST_BLOCKS = 2**16, 16, 64
"""Beyond these a network is a typing error."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """A diffusers module that takes a source module's parameters, or these of its output rows."""

    name: str
    rows: I64 | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Architecture:
    """A source's network as diffusers has it.

    Attributes:
        family: denoiser family, as `unet2d`.
        config: the diffusers configuration.
        targets: diffusers modules of each source module with parameters.
        first: the source's first convolution.
        last: its last.
        time_layers: the layers that see only the timestep.
    """

    family: str
    config: dict[str, Any]
    targets: Mapping[str, tuple[Target, ...]]
    first: str
    last: str
    time_layers: tuple[str, ...]


class Arguments:
    """Constructor arguments as the settings give them; each that is not understood is refused."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = dict(values)
        self._where = where

    def whole(self, name: str, default: int | None = None, *, least: int = 1, most: int = LARGEST) -> int:
        """A whole number."""
        value = self._values.pop(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self.refuse(name, value, f"a whole number from {least} to {most}")
        return int(value)

    def wholes(self, name: str, *, empty: bool = False) -> list[int]:
        """A list of whole numbers."""
        value = self._values.pop(name, None)
        found = list(value) if isinstance(value, (list, tuple)) else None
        good = found is not None and all(type(one) is int and 0 < one <= LARGEST for one in found)
        if found is None or not good or not (found or empty) or len(found) > MOST_LEVELS:
            self.refuse(name, value, f"a list of at most {MOST_LEVELS} whole numbers")
        return found

    def only(self, name: str, *allowed: Any, why: str = "this is not supported") -> Any:
        """A value that must be one of these; missing, it is the first."""
        value = self._values.pop(name, allowed[0])
        if value not in allowed:
            self.refuse(name, value, f"{' or '.join(repr(one) for one in allowed)}; {why}")
        return value

    def ignore(self, *names: str) -> None:
        """Values that change nothing here."""
        for name in names:
            self._values.pop(name, None)

    def finish(self) -> None:
        """Refuse what is left."""
        if self._values:
            name = sorted(str(key) for key in self._values)[0]
            raise OptionError(f"settings: {self._where} has {name}, which is not understood; leave it out or remove it")

    def refuse(self, name: str, value: Any, expected: str) -> NoReturn:
        """Raise with what was got and expected."""
        raise OptionError(f"settings: {self._where} has {name} {short(value)}, expected {expected}")


def check_widths(widths: Sequence[int]) -> None:
    """Refuse channels that no network has, before anything of their size is made.

    Raises:
        OptionError: a level has more than `LARGEST` channels.
    """
    if max(widths) > LARGEST:
        raise OptionError(f"settings: a level has {max(widths)} channels, expected at most {LARGEST}")


def one(name: str) -> tuple[Target, ...]:
    """A source module that becomes one diffusers module."""
    return (Target(name=name),)


def fused_rows(channels: int, heads: int, *, by_head: bool) -> Sequence[I64]:
    """Rows of queries, keys and values in a fused projection of 3 * channels outputs.

    Args:
        channels: of each.
        heads: of the attention.
        by_head: whether each head's three lie together, else all queries come first.
    """
    index = np.arange(3 * channels, dtype=np.int64)
    if by_head:
        return list(index.reshape(heads, 3, channels // heads).transpose(1, 0, 2).reshape(3, channels))
    return list(index.reshape(3, channels))
