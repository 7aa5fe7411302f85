"""A command whose options are the fields of a dataclass, for commands with more options than a signature reads well."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def takes(arguments: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Turn a function of one dataclass into a command with an option a field, in the order of the fields.

    Args:
        arguments: a dataclass whose fields are annotated as typer wants parameters; a field without a default is a
            required option.
    """
    hints = get_type_hints(arguments, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=_default(field), annotation=hints[field.name]
        )
        for field in fields(arguments)
    ]

    def wrap(perform: Callable[[T], None]) -> Callable[..., None]:
        @functools.wraps(perform)
        def command(**values: Any) -> None:
            perform(arguments(**values))

        vars(command)["__signature__"] = inspect.Signature(parameters)
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return wrap


def _default(field: Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default
