"""What a failed command says: one line that fits a screen, and whose fault it was as an exit code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

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
    return with_flags(message, prog, (*arguments, *foreign))


def one_line(text: str, longest: int = LONGEST_LINE) -> str:
    """Text without line ends; of one that is too long the beginning and the end, where the advice stands."""
    line = " ".join(str(text).split())
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
        message = f"there is not enough memory ({error}); give a smaller model, batch or --memory-gib, or more memory"
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
