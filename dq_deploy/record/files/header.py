"""What a record's header and arrays are checked with while they are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from dq_deploy.errors import RecordError


def is_int(value: Any) -> bool:
    """Whether a JSON value is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_type(what: str, value: Any, kind: type) -> None:
    """Refuse a value of another Python type.

    Raises:
        RecordError: naming both.
    """
    if not isinstance(value, kind):
        raise RecordError(f"{what} is {type(value).__name__}, expected {kind.__name__}")


def check_keys(what: str, value: Mapping[str, Any], expected: Iterable[str]) -> None:
    """Refuse an object that lacks a key or has one that is not known.

    Raises:
        RecordError: naming the key.
    """
    wanted = set(expected)
    if missing := sorted(wanted - set(value)):
        raise RecordError(f"{what} lacks {', '.join(missing)}; the file is incomplete")
    if unknown := sorted(set(value) - wanted):
        raise RecordError(f"{what} has the unknown {', '.join(unknown[:3])}; expected only known keys")


def check_unique(what: str, names: list[str]) -> None:
    """Refuse a list that names something twice.

    Raises:
        RecordError: naming it.
    """
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RecordError(f"{what} lists {twice} twice, expected once")


def name_of(what: str, entry: Any) -> str:
    """The name of an entry of a list.

    Raises:
        RecordError: the entry is no object, or its name no text.
    """
    check_type(f"{what} entry", entry, dict)
    name = entry.get("name")
    if not isinstance(name, str):
        raise RecordError(f"{what} entry has the name {name!r}, expected text")
    return name


def typed_array(arrays: Mapping[str, NDArray[Any]], key: str, dtype: str) -> NDArray[Any]:
    """An array of a known element type.

    Raises:
        RecordError: it has another.
    """
    array = arrays[key]
    if array.dtype.name != dtype:
        raise RecordError(f"tensor {key} is {array.dtype}, expected {dtype}")
    return array
