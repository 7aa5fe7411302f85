"""What a script says where it is given something wrong: one line, and the exit code of the commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dq_deploy.errors import DqError, FileProblemError


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Inside, an error of the project or of a file ends the script with one line on stderr and its exit code."""
    try:
        yield
    except DqError as error:
        _end(str(error), error.exit_code)
    except OSError as error:
        if error.filename is None:
            raise
        _end(f"{error.filename}: {error.strerror}; choose another place", FileProblemError.exit_code)


def _end(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
