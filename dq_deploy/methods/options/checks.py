"""Options of a dataclass with the values they may have: `weight_bits: int = whole(4, 2, 8)`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field
from typing import Any, Protocol

import numpy as np

from dq_deploy.errors import OptionError

_CHECK = "check"


class Check(Protocol):
    """Refuses a value that an option may not have."""

    def __call__(self, name: str, value: object) -> None:
        """Return where the value is allowed.

        Raises:
            OptionError: names the option, what was got and what is allowed.
        """


@dataclass(frozen=True, kw_only=True)
class _Number:
    low: float
    high: float
    whole: bool
    also: int | None = None
    also_means: str = ""

    def __call__(self, name: str, value: object) -> None:
        kinds = int if self.whole else (int, float)
        if isinstance(value, kinds) and not isinstance(value, bool):
            assert isinstance(value, (int, float))
            if self.low <= value <= self.high or value == self.also:
                return
        kind = "whole number" if self.whole else "number"
        more = "" if self.also is None else f", or {self.also} {self.also_means}"
        raise OptionError(f"{name} is {value!r}, expected a {kind} from {self.low:.12g} to {self.high:.12g}{more}")


@dataclass(frozen=True, kw_only=True)
class _Choice:
    allowed: tuple[str | int, ...]

    def __call__(self, name: str, value: object) -> None:
        if not any(value == one and isinstance(value, type(one)) for one in self.allowed):
            raise OptionError(f"{name} is {value!r}, expected one of {', '.join(map(str, self.allowed))}")


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise OptionError(f"{name} is {value!r}, expected true or false")


def whole(default: int | None, low: int, high: int, *, also: int | None = None, also_means: str = "") -> Any:
    """An option that is a whole number from `low` to `high`, or the one number `also`."""
    check = _Number(low=low, high=high, whole=True, also=also, also_means=also_means)
    return field(default=default, metadata={_CHECK: check})


def number(default: float | None, low: float, high: float) -> Any:
    """An option that is a number from `low` to `high`."""
    return field(default=default, metadata={_CHECK: _Number(low=low, high=high, whole=False)})


def choice(default: str | int | None, *allowed: str | int) -> Any:
    """An option that is one of these, or None where that is its default."""
    return field(default=default, metadata={_CHECK: _Choice(allowed=allowed)})


def flag(default: bool | None) -> Any:
    """An option that is true or false."""
    return field(default=default, metadata={_CHECK: _flag})


def plain(value: Any) -> Any:
    """A number of numpy as Python's of the same kind; any other value as it is."""
    return value.item() if isinstance(value, np.generic) else value


def several(name: str, values: object, kind: type, of: type = Iterable) -> tuple[Any, ...]:
    """The values of an option that takes several of one kind, or the keys of one that is a mapping.

    A text is one value and not its letters.

    Raises:
        OptionError: names the option, what was got and what is allowed.
    """
    found = None
    if isinstance(values, of) and not isinstance(values, str):
        assert isinstance(values, Iterable)
        found = tuple(plain(value) for value in values)
    if found is None or not all(isinstance(value, kind) and not isinstance(value, bool) for value in found):
        what = "texts" if kind is str else "whole numbers"
        raise OptionError(f"{name} is {values!r}, expected a {'mapping from' if of is Mapping else 'list of'} {what}")
    return found


def check_values(options: Mapping[str, Field[Any]], values: Mapping[str, object]) -> None:
    """Check values by name against the options of these names; an option whose default is None may be None.

    Raises:
        OptionError: names the first option that has a value it may not have.
    """
    for name, value in values.items():
        check: Check | None = options[name].metadata.get(_CHECK)
        if check is not None and not (value is None and options[name].default is None):
            check(name, value)
