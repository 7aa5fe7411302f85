"""Sizes that follow the batch, as polynomials: comparisons of them hold for every batch from 2, not for one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

FIRST = 2
"""The least batch that a polynomial stands for; one of one is another case: an axis of one element lies anywhere."""

BatchNumber = Union[int, "Polynomial"]


class Polynomial:
    """terms[0] + terms[1] t + terms[2] t^2 ...  with t = batch - 2, any whole number from 0.

    `<=` and `>=` say that it holds for every t, which is so where no term of the difference is below 0; `<` and `>` say
    that it might hold for some. So code that refuses by any of them what is too small or too large is on the safe side.
    """

    __slots__ = ("terms",)

    def __init__(self, terms: Sequence[int]) -> None:
        """Take the factors of the powers of t; at least one behind the first is not 0."""
        self.terms = tuple(terms)

    def __add__(self, other: BatchNumber) -> BatchNumber:
        """Sum."""
        if type(other) is int:
            return Polynomial((self.terms[0] + other, *self.terms[1:]))
        mine, theirs = self.terms, terms_of(other)
        count = max(len(mine), len(theirs))
        return number([(mine[i] if i < len(mine) else 0) + (theirs[i] if i < len(theirs) else 0) for i in range(count)])

    __radd__ = __add__

    def __neg__(self) -> BatchNumber:
        """Opposite."""
        return number([-term for term in self.terms])

    def __sub__(self, other: BatchNumber) -> BatchNumber:
        """Difference."""
        return self + -other

    def __rsub__(self, other: BatchNumber) -> BatchNumber:
        """Difference from a number."""
        return -self + other

    def __mul__(self, other: BatchNumber) -> BatchNumber:
        """Product."""
        if type(other) is int:
            return Polynomial([other * term for term in self.terms]) if other else 0
        theirs = terms_of(other)
        found = [0] * (len(self.terms) + len(theirs) - 1)
        for i, a in enumerate(self.terms):
            for j, b in enumerate(theirs):
                found[i + j] += a * b
        return number(found)

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        """Whether they are the same for every batch."""
        return isinstance(other, Polynomial) and self.terms == other.terms

    def __hash__(self) -> int:
        """Of the terms."""
        return hash(self.terms)

    def __ge__(self, other: BatchNumber) -> bool:
        """Whether it is so for every batch."""
        if type(other) is int:
            return self.terms[0] >= other and min(self.terms[1:]) >= 0
        return all(term >= 0 for term in terms_of(self - other))

    def __le__(self, other: BatchNumber) -> bool:
        """Whether it is so for every batch."""
        return all(term >= 0 for term in terms_of(other - self))

    def __lt__(self, other: BatchNumber) -> bool:
        """Whether it may be so for some batch."""
        return not self >= other

    def __gt__(self, other: BatchNumber) -> bool:
        """Whether it may be so for some batch."""
        return not self <= other

    def __repr__(self) -> str:
        """The terms, for messages."""
        return " + ".join(str(term) if not i else f"{term}*(B-2)^{i}" for i, term in enumerate(self.terms) if term)


BATCH = Polynomial((FIRST, 1))
"""The batch itself."""


def number(terms: Sequence[int]) -> BatchNumber:
    """A polynomial, or the number it is where nothing follows the batch."""
    end = len(terms)
    while end > 1 and not terms[end - 1]:
        end -= 1
    return terms[0] if end == 1 else Polynomial(terms[:end])


def terms_of(value: BatchNumber) -> tuple[int, ...]:
    """Terms of a polynomial or a number."""
    return value.terms if isinstance(value, Polynomial) else (value,)


def is_size(value: BatchNumber) -> bool:
    """Whether it is 1, or 2 and more for every batch: code may then ask whether an axis has several elements."""
    return value >= 1 if type(value) is int else value >= 2
