"""What a failed command says: one line that fits a screen, and whose fault it was as an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from typing import Any, TypeVar

from dq_deploy.cli.text.flags import with_flags
from dq_deploy.errors import DqError, explained, is_out_of_memory

EXIT_USAGE = 2

LONGEST_LINE = 300

_command: ContextVar[tuple[str, Sequence[str]]] = ContextVar("name and arguments of the command", default=("", ()))


@contextmanager
def running(prog: str, arguments: Sequence[str]) -> Iterator[None]:
    """Inside, messages of the library are said in the flags of this command."""
    token = _command.set((prog, arguments))
    try:
        yield
    finally:
        _command.reset(token)


def in_flags(message: str, *foreign: str) -> str:
    """A message of the library, with the flags of the running command where it names options.

    Args:
        message: which may hold what the user typed: backticks there stay.
        foreign: other texts inside it that are not the library's.
    """
    prog, arguments = _command.get()
    said = with_flags(message, prog, (*arguments, *foreign))
    return message if said == message else said


T = TypeVar("T")


def in_flags_throughout(value: T) -> T:
    """A value of the library as the running command shows and writes it: `in_flags` of every text in it.

    Args:
        value: texts, tables with their keys, lists, tuples and dataclasses of them; anything else is passed over.

    Returns:
        A value of the same type; the same object where no text changes.
    """
    said: T = _said(value)
    return said


def _said(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Enum):
        return in_flags(value)
    if isinstance(value, dict):
        pairs = [(_said(key), _said(item)) for key, item in value.items()]
        same = all(new[0] is old[0] and new[1] is old[1] for new, old in zip(pairs, value.items(), strict=True))
        return value if same else dict(pairs)
    if isinstance(value, (list, tuple)):
        items = [_said(item) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if is_dataclass(value) and not isinstance(value, type):
        found = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        changed = {name: new for name, old in found.items() if (new := _said(old)) is not old}
        return replace(value, **changed) if changed else value
    return value


def one_line(text: str, longest: int = LONGEST_LINE) -> str:
    """Text without line ends or control characters; if it is too long, its beginning and its end with the advice."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(str(text).split()))
    if len(line) <= longest:
        return line
    mark = " ... "
    tail = (longest - len(mark)) * 2 // 5
    return f"{line[: longest - len(mark) - tail].rstrip()}{mark}{line[-tail:].lstrip()}"


def failure_of(error: Exception, prog: str) -> tuple[str, int]:
    """The line behind `error: ` and the exit code."""
    if hasattr(error, "format_message"):  # found by typer
        return f"{str(error.format_message()).rstrip('.')}; see `{prog} --help`", EXIT_USAGE
    message, code = explained(error)
    message = in_flags(message, *_foreign_words(error))
    if is_out_of_memory(error):
        why = f" ({error})" if str(error) else ""
        message = f"there is not enough memory{why}; give a smaller model, batch or --memory-gib, or more memory"
    elif not isinstance(error, DqError) and sys.flags.optimize > 1:
        message += "; libraries read their docstrings, which python -OO takes away: run with PYTHONOPTIMIZE=1 at most"
    elif not isinstance(error, DqError):
        message += "; rerun with --debug for the traceback"
    return message, code


def _foreign_words(error: BaseException | None) -> list[str]:
    """What other libraries said, in an error or in what it was raised from."""
    words = []
    while error is not None:
        if not isinstance(error, DqError):
            words.append(str(error))
        error = error.__cause__
    return words
