"""A typed value made from a JSON object and back: nothing is lost on the way, and what does not fit is one line."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any, Self, Union, get_args, get_origin, get_type_hints

from dq_deploy.manifest.kinds import Kind, shown

_OWN = ("nulls", "others")


class EntryError(ValueError):
    """What is wrong with a JSON value and where, as `layers[0].name is 5, expected text`."""


@dataclass(frozen=True, kw_only=True)
class Entries:
    """A JSON object as a value: one field an entry, by the same name.

    A field without a default is an entry that must be there. A field whose default is None is an entry that may be
    absent. For every object x that `from_json` accepts, `from_json(x).to_json() == x`.

    Attributes:
        nulls: entries that may be absent and are written as null where they are None; other Nones are left out.
        others: entries that this release does not know, by name: kept, since a hash goes over them.
    """

    nulls: frozenset[str] = field(default=frozenset(), repr=False, compare=False)
    others: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_json(cls, value: object, *, where: str = "") -> Self:
        """Read an object.

        Args:
            value: what `json.loads` gave.
            where: path of the object, for the message; empty for the outermost.

        Raises:
            EntryError: an entry is missing or is something else.
        """
        if not isinstance(value, dict):
            raise EntryError(f"{where or 'it'} is {shown(value)}, expected an object")
        found: dict[str, Any] = {}
        prefix = f"{where}." if where else ""
        for name, (hint, needed) in _entries_of(cls).items():
            if name in value:
                found[name] = _read(hint, value[name], f"{prefix}{name}")
            elif needed:
                raise EntryError(f"{prefix}{name} is missing")
        nulls = frozenset(name for name, entry in found.items() if entry is None)
        others = {name: entry for name, entry in value.items() if name not in found}
        return cls(**found, nulls=nulls, others=others)

    def to_json(self) -> dict[str, Any]:
        """JSON values, in the order of the fields."""
        own = {}
        for name, (_, needed) in _entries_of(type(self)).items():
            value = getattr(self, name)
            if value is not None or needed or name in self.nulls:
                own[name] = _json_of(value)
        return {**own, **self.others}


def _entries_of(cls: Any) -> Mapping[str, tuple[Any, bool]]:
    """Of each entry its type and whether it must be there."""
    return _known_entries(cls)


@functools.cache
def _known_entries(cls: Any) -> Mapping[str, tuple[Any, bool]]:
    hints = get_type_hints(cls, include_extras=True)
    return {
        entry.name: (hints[entry.name], entry.default is MISSING and entry.default_factory is MISSING)
        for entry in fields(cls)
        if entry.name not in _OWN
    }


def _read(hint: Any, value: object, where: str) -> object:
    """A JSON value as the type says, or an error."""
    if isinstance(hint, type) and issubclass(hint, Entries):
        return hint.from_json(value, where=where)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind = next(item for item in arguments if isinstance(item, Kind))
        if not kind.known(value):
            raise EntryError(f"{where} is {shown(value)}, expected {kind.words}")
        return value
    if origin in (Union, types.UnionType):
        return _read(next(item for item in arguments if item is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise EntryError(f"{where} is {shown(value)}, expected a list")
        return tuple(_read(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if not isinstance(value, dict):
        raise EntryError(f"{where} is {shown(value)}, expected an object")
    inner = arguments[1]
    return value if inner is Any else {name: _read(inner, item, f"{where}.{name}") for name, item in value.items()}


def _json_of(value: object) -> object:
    if isinstance(value, Entries):
        return value.to_json()
    if isinstance(value, (tuple, list)):
        return [_json_of(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _json_of(item) for name, item in value.items()}
    return value
