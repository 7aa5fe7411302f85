"""What a single value of a manifest may be: the type a reader of the code sees, and the words of a refusal."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Kind:
    """A value without parts: what it is called, and how it is known."""

    words: str
    known: Callable[[object], bool]


def _text(value: object) -> bool:
    return isinstance(value, str)


def _any_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _count(value: object) -> bool:
    return isinstance(value, int) and _whole(value) and value >= 0


def _size(value: object) -> bool:
    return isinstance(value, int) and _whole(value) and value > 0


def _dimension(value: object) -> bool:
    return _size(value) or (isinstance(value, str) and value != "")


def _capability(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d{1,2}\.\d", value) is not None


def _or_null(known: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or known(value)


Text = Annotated[str, Kind("text", _text)]
TextOrNull = Annotated[str | None, Kind("text or null", _or_null(_text))]
Flag = Annotated[bool, Kind("true or false", lambda value: isinstance(value, bool))]
Number = Annotated[float, Kind("a finite number", _number)]
AnyNumber = Annotated[float, Kind("a number", _any_number)]
NumberOrNull = Annotated[float | None, Kind("a finite number or null", _or_null(_number))]
WholeOrNull = Annotated[int | None, Kind("a whole number or null", _or_null(_whole))]
Count = Annotated[int, Kind("a whole number from 0", _count)]
CountOrNull = Annotated[int | None, Kind("a whole number from 0, or null", _or_null(_count))]
Size = Annotated[int, Kind("a size of at least 1", _size)]
SizeOrNull = Annotated[int | None, Kind("a size of at least 1 or null", _or_null(_size))]
Dimension = Annotated[int | str, Kind("a size of at least 1 or a letter", _dimension)]
Capability = Annotated[str, Kind("a compute capability such as 8.9", _capability)]
ObjectOrNull = Annotated[
    Mapping[str, Any] | None, Kind("an object or null", _or_null(lambda value: isinstance(value, dict)))
]


def shown(value: object) -> str:
    """A JSON value in an error message: at most 40 characters."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
