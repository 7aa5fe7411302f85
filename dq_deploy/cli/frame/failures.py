"""What a failed command says: one line that fits a screen, and whose fault it was as an exit code."""

from __future__ import annotations

from dq_deploy.errors import DqError, explained, is_out_of_memory

EXIT_USAGE = 2

LONGEST_LINE = 300


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
    if is_out_of_memory(error):
        message = f"there is not enough memory ({error}); give a smaller model, batch or --memory-gib, or more memory"
    elif not isinstance(error, DqError):
        message += "; rerun with --debug for the traceback"
    return message, code
