"""What processes tell each other: dataclasses, as lines of JSON."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

from dq_deploy import errors
from dq_deploy.errors import DqError

_PLAIN = (str, int, float, bool)  # JSON has them


class Message(Protocol):
    """Any dataclass; its values are JSON's, tuples, or dataclasses again."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


RequestT = TypeVar("RequestT", bound=Message)
MessageT = TypeVar("MessageT", bound=Message)
EventT = TypeVar("EventT", bound=Message)

Tell = Callable[[Message], None]
"""Sends an event to the process that asked."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What a worker raised instead of a result.

    Attributes:
        kind: class of the exception; of our own errors the one of `dq_deploy.errors`.
        message: one line.
        exit_code: what a command ends with.
        errno: of a system's error.
        last_line: what Python prints last where nobody catches the exception, as `MemoryError: no room`.
    """

    kind: str
    message: str
    exit_code: int
    errno: int | None = None
    last_line: str = ""

    @property
    def own_error(self) -> DqError | None:
        """The exception of `dq_deploy.errors` that the worker raised; None where it was another."""
        kind = getattr(errors, self.kind, None)
        return kind(self.message) if isinstance(kind, type) and issubclass(kind, DqError) else None


def as_json(value: Message) -> dict[str, Any]:
    """A dataclass as values that JSON holds."""
    return dataclasses.asdict(value)


def from_json(kind: type[MessageT], value: Mapping[str, Any]) -> MessageT:
    """A dataclass from the JSON values of `as_json`.

    Raises:
        TypeError: a field is missing or unknown, or JSON does not tell which class of a union it is.
    """
    hints = get_type_hints(kind)
    return kind(**{name: _value_of(hints.get(name, Any), entry) for name, entry in value.items()})


def _value_of(kind: Any, value: Any) -> Any:
    """A JSON value as the annotated type of its field: dataclasses and tuples are what JSON does not have."""
    if value is None:
        return None
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return from_json(kind, value)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        kinds = [entry for entry in arguments if entry is not type(None)]
        if len(kinds) == 1:
            return _value_of(kinds[0], value)
        if all(entry in _PLAIN or get_origin(entry) is Literal for entry in kinds):
            return value
        raise TypeError(f"JSON does not tell which of {kind} a value is, expected one class besides None")
    if origin is tuple:
        each = arguments[:1] * len(value) if arguments[-1:] == (Ellipsis,) else arguments
        return tuple(_value_of(entry, item) for entry, item in zip(each, value, strict=True))
    if origin in (list, Sequence):
        return [_value_of(arguments[0], item) for item in value]
    if origin in (dict, Mapping):
        return {key: _value_of(arguments[1], item) for key, item in value.items()}
    return value
