"""Sizes in a plan's text: numbers, or a number times sizes that are known at run time, as a batch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_NUMBER = re.compile(r"-?\d{1,18}")
_LITERAL = re.compile(r"(?:__s\^)?(-?\d{1,18})i64")
_DEPTH = 64
_LARGEST = 1 << 62
_MOST_SYMBOLS = 8


@dataclass(frozen=True)
class Size:
    """`factor` times the product of `symbols`; a factor of None is a size the text does not tell."""

    factor: int | None
    symbols: tuple[str, ...] = ()

    @classmethod
    def of(cls, number: int) -> Size:
        """A plain number."""
        return cls(number)

    @classmethod
    def unknown(cls) -> Size:
        """A size that is not told."""
        return cls(None)

    @property
    def number(self) -> int | None:
        """The number, or None where the size is not one."""
        return self.factor if not self.symbols else None

    def __str__(self) -> str:
        if self.factor is None:
            return "?"
        return f"{self.factor}" + "".join(" x dynamic" for _ in self.symbols)


def product_of(sizes: Iterable[Size]) -> Size:
    """Product of sizes, 1 of none; unknown where it is larger than any tensor."""
    factor = 1
    symbols: list[str] = []
    for size in sizes:
        if size.factor is None:
            return Size.unknown()
        factor *= size.factor
        symbols += size.symbols
        if abs(factor) > _LARGEST or len(symbols) > _MOST_SYMBOLS:
            return Size.unknown()
    return Size(factor, tuple(sorted(symbols)))


class SymbolTable:
    """How a program computes the sizes it names: `mul`, `copy`, `max` with 0, and constants."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._known: dict[str, Size] = {}

    def add(self, word: str, outputs: list[str], inputs: list[str], literal: str) -> None:
        """Take one statement, as `mul={ output={"c"} input={"a" "b"} }`."""
        if len(outputs) == 1:
            self._made[outputs[0]] = (word, (literal,) if word == "memset" else tuple(inputs))

    def size(self, name: str) -> Size:
        """A number as it stands, or what the program computes under a name."""
        if _NUMBER.fullmatch(name):
            return Size.of(int(name))
        return self._resolve(name, 0)

    def _resolve(self, name: str, depth: int) -> Size:
        if name not in self._known:
            self._known[name] = Size.unknown()  # what a size that needs itself is
            if depth <= _DEPTH:
                self._known[name] = self._computed(name, depth)
        return self._known[name]

    def _computed(self, name: str, depth: int) -> Size:
        word, inputs = self._made.get(name, ("", ()))
        if word in ("", "memset"):
            literal = _LITERAL.fullmatch(inputs[0] if inputs else name)
            if literal:
                return Size.of(int(literal[1]))
            return Size(1, (name,)) if not word and name else Size.unknown()
        sizes = [self._resolve(item, depth + 1) for item in inputs]
        if word == "copy" and len(sizes) == 1:
            return sizes[0]
        if word == "mul" and len(sizes) == 2:
            return product_of(sizes)
        if word == "max" and len(sizes) == 2 and Size.of(0) in sizes:
            return next((size for size in sizes if size != Size.of(0)), Size.of(0))
        return Size.unknown()
