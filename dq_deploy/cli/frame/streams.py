"""Standard streams a command can rely on: open, never fatal on stderr, and printable in any locale."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from dq_deploy.errors import DqError, ReaderGoneError

STANDARD = (0, 1, 2)


class OutputLostError(DqError):
    """What was printed could not be written to standard output."""


class _Stream:
    """A text stream whose failures are named (stdout) or not felt (stderr); all else is the stream's own."""

    def __init__(self, stream: Any, *, is_needed: bool) -> None:
        self._stream = stream
        self._is_needed = is_needed
        self._lost: DqError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write to the stream beneath."""
        try:
            return int(self._stream.write(text) or 0)
        except OSError as error:
            self._failed(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each line."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream beneath."""
        if self._lost is not None:  # a library may have swallowed it
            raise self._lost
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        """Send the rest nowhere, also what is still buffered: the interpreter would fail on it at exit."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if not self._is_needed:
            return
        if isinstance(error, BrokenPipeError):
            self._lost = ReaderGoneError("the reader of standard output went away")
        else:
            reason = error.strerror or error
            self._lost = OutputLostError(f"cannot write to standard output: {reason}; free space or send it elsewhere")
        raise self._lost from error


@contextlib.contextmanager
def usable_streams() -> Iterator[None]:
    """Inside, all three standard descriptors are open and both output streams take any text.

    A closed descriptor is opened on nothing, so that no file of the work gets its number. What cannot be encoded is
    written as an escape.
    """
    for descriptor in STANDARD:
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        out, err = (stack.enter_context(open(os.devnull, "w")) if s is None else s for s in before)
        for stream in (out, err):
            if getattr(stream, "errors", None) in ("strict", "surrogateescape") and hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        sys.stdout, sys.stderr = _Stream(out, is_needed=True), _Stream(err, is_needed=False)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def columns(least: int, stream: Any) -> int:
    """Width of what is drawn, from `least` on: what COLUMNS says where that makes sense, else the terminal's."""
    text = os.environ.get("COLUMNS", "")
    asked = int(text) if text.isdecimal() and len(text) < 6 else 0
    if not asked:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            asked = os.get_terminal_size(stream.fileno()).columns
    return min(max(asked, least), 1000)
