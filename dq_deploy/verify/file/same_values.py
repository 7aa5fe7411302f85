"""Two values that must be the same: the first place where they are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dq_deploy.numerics.arrays import Array

_LONGEST = 60


@dataclass(frozen=True, kw_only=True)
class FileDifference:
    """One thing in an engine that its record does not make.

    Attributes:
        place: what differs, as `constant conv_in.bias` or `node dq/conv_in/product (MatMulInteger), input 1`.
        got: the engine's, in a few characters.
        expected: the record's.
        coordinate: index of the first bad value where the place is a tensor, else None.
    """

    place: str
    got: str
    expected: str
    coordinate: tuple[int, ...] | None = None

    def text(self) -> str:
        """One line for a person."""
        at = f" at {self.coordinate}" if self.coordinate else ""
        return f"{self.place}{at} is {self.got}, expected {self.expected}"


def shown(value: Any) -> str:
    """A value in few characters."""
    if isinstance(value, float):
        return repr(value)
    text = str(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def array_difference(place: str, got: Array, expected: Array) -> FileDifference | None:
    """The first value of an array that is not the other's bit for bit, or None.

    Args:
        place: what the array is.
        got: of the engine.
        expected: of the record.
    """
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return FileDifference(
            place=place, got=f"{got.dtype} {list(got.shape)}", expected=f"{expected.dtype} {list(expected.shape)}"
        )
    wrong = _bits(got) != _bits(expected)
    if not wrong.any():
        return None
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    return FileDifference(place=place, got=_number(got[at]), expected=_number(expected[at]), coordinate=at)


def _bits(array: Array) -> Array:
    """The array as unsigned integers of its bits; numbers of less than a byte by their value."""
    if array.dtype.name in ("int4", "uint4", "int2", "uint2"):
        array = array.astype(np.int8)
    flat = np.ascontiguousarray(array).reshape(array.shape)
    if flat.dtype.kind == "b" or flat.dtype.itemsize not in (1, 2, 4, 8):
        return flat
    return flat.view(f"u{flat.dtype.itemsize}")


def _number(value: Any) -> str:
    """A number with all its digits."""
    if isinstance(value, np.floating) and value.dtype == np.float32:
        return (
            str(np.format_float_positional(value, unique=True, trim="-")) if 1e-3 < abs(value) < 1e6 else f"{value:.9g}"
        )
    return str(value)


def value_differences(place: str, got: Any, expected: Any) -> list[FileDifference]:
    """Every leaf in which two JSON values differ; a missing one counts as `missing`.

    Args:
        place: what the value is, in front of the path to each leaf.
        got: of the engine.
        expected: of the record.
    """
    if isinstance(got, Mapping) and isinstance(expected, Mapping):
        found = []
        for key in dict.fromkeys([*expected, *got]):
            inner = f"{place}.{key}" if place else str(key)
            if key not in got or key not in expected:
                has, lacks = (
                    ("missing", shown(expected[key])) if key in expected else (shown(got[key]), "nothing there")
                )
                found.append(FileDifference(place=inner, got=has, expected=lacks))
            else:
                found += value_differences(inner, got[key], expected[key])
        return found
    if _is_list(got) and _is_list(expected):
        if len(got) != len(expected):
            return [FileDifference(place=f"length of {place}", got=str(len(got)), expected=str(len(expected)))]
        return [
            difference
            for index, (a, b) in enumerate(zip(got, expected, strict=True))
            for difference in value_differences(f"{place}[{index}]{_name_of(b)}", a, b)
        ]
    if type(got) is type(expected) and got == expected:
        return []
    return [FileDifference(place=place, got=shown(got), expected=shown(expected))]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _name_of(entry: Any) -> str:
    """The name of an entry of a list, or the word an entry that is a list begins with."""
    name = entry.get("name") if isinstance(entry, Mapping) else entry[0] if _is_list(entry) and entry else None
    return f" ({name})" if isinstance(name, str) else ""
