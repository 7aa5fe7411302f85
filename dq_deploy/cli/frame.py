"""What every command shares: one clear line on a failure, exit codes, JSON files, lists of numbers.

Exit codes: 0 done, 1 internal error, 2 the user's mistake, 3 a demanded guarantee does not hold,
130 interrupted, 143 terminated, 141 the reader of our output went away.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dq_deploy.errors import DqError, OptionError

if TYPE_CHECKING:
    from rich.console import Console

EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141
EXIT_TERMINATED = 143

LONGEST_LIST = 1_000_000
"""Numbers that a range such as 0-9 may stand for."""


class _Stopped(BaseException):
    """A signal ended the command; passes through `except Exception` so that clean-up code runs."""

    def __init__(self, word: str, code: int) -> None:
        super().__init__(word)
        self.word = word
        self.code = code


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise _Stopped("terminated", EXIT_TERMINATED)


def _one_line(text: str) -> str:
    return " ".join(str(text).split())


def warn(message: str) -> None:
    """Print one `warning: ...` line on stderr."""
    print(f"warning: {_one_line(message)}", file=sys.stderr, flush=True)


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {_one_line(message)}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def _silence_stdout() -> None:
    """Send what is still buffered nowhere: the reader is gone and the interpreter flushes at exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


def _quiet_libraries() -> None:
    """Keep third-party chatter off stderr, and third-party code off the network."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


def _with_debug(command: Callable[..., None], state: dict[str, bool]) -> Callable[..., None]:
    """The command with a `--debug` option added to its signature."""
    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter(
        "debug",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option("--debug", help="Print the traceback of a failure.")],
    )

    @functools.wraps(command)
    def wrapped(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        state["debug"] = debug
        if not debug:
            _quiet_libraries()
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except KeyboardInterrupt:  # typer would swallow it
            raise _Stopped("interrupted", EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            raise _Stopped("", EXIT_PIPE) from None

    parameters = [*signature.parameters.values(), option]
    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


def run(command: Callable[..., None], argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command function and leave the process with its exit code.

    Args:
        command: a function with typer-annotated parameters; its docstring is the help text.
        argv: arguments, by default those of the process.

    Raises:
        SystemExit: always, with the codes in this module's docstring.
    """
    state = {"debug": "--debug" in (sys.argv[1:] if argv is None else argv)}
    # no markup: help texts may hold square brackets
    app = typer.Typer(
        add_completion=False, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]}
    )
    app.command()(_with_debug(command, state))
    started_as = Path(sys.argv[0]).name
    prog = started_as if started_as.startswith("dq-") else f"dq-{command.__name__}"
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        code = typer.main.get_command(app).main(
            args=None if argv is None else list(argv), prog_name=prog, standalone_mode=False
        )
        if code == EXIT_INTERRUPTED:  # typer met the interrupt outside the command
            _fail("interrupted", EXIT_INTERRUPTED)
        raise SystemExit(code if isinstance(code, int) else 0)
    except _Stopped as stop:
        if stop.code == EXIT_PIPE:
            _silence_stdout()
            raise SystemExit(EXIT_PIPE) from None
        _fail(stop.word, stop.code)
    except KeyboardInterrupt:
        _fail("interrupted", EXIT_INTERRUPTED)
    except Exception as error:
        if state["debug"]:
            traceback.print_exc()
        _fail(_message_of(error, prog), _exit_code_of(error))
    finally:
        signal.signal(signal.SIGTERM, previous)


def _exit_code_of(error: Exception) -> int:
    if isinstance(error, DqError):
        return error.exit_code
    if hasattr(error, "format_message") or isinstance(error, MemoryError):  # the former: found by typer
        return EXIT_USAGE
    return EXIT_INTERNAL


def _message_of(error: Exception, prog: str) -> str:
    if isinstance(error, DqError):
        return str(error)
    if hasattr(error, "format_message"):
        return f"{str(error.format_message()).rstrip('.')}; see `{prog} --help`"
    if isinstance(error, MemoryError):
        return f"there is not enough memory ({error}); give a smaller model, batch or --memory-gib, or more memory"
    return f"internal error: {type(error).__name__}: {error}; rerun with --debug for the traceback"


def console() -> Console:
    """A rich console on stdout for tables; at least 100 columns wide where stdout is no terminal."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console()
    return Console(width=max(100, int(os.environ.get("COLUMNS", "0") or 0)))


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, a log line each tenth elsewhere, on stderr.

    Args:
        what: is being done, one word or two.

    Yields:
        Function of (steps done, steps in all).
    """
    if not sys.stderr.isatty():
        yield _log_tenths(what)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _log_tenths(what: str) -> Callable[[int, int], None]:
    shown = -1

    def advance(done: int, total: int) -> None:
        nonlocal shown
        tenth = 10 * done // max(total, 1)
        if tenth > shown:
            shown = tenth
            print(f"{what} {done}/{total}", file=sys.stderr, flush=True)

    return advance


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; NaN and infinity become null, which JSON has no word for."""
    from dq_deploy.artifacts import write_text_atomic

    write_text_atomic(path, json.dumps(_json_safe(value), indent=2) + "\n")


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # a numpy scalar
        value = value.item()
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def check_outputs(*paths: Path | None, inputs: Sequence[Path | None] = ()) -> None:
    """Refuse before any work outputs that could not be written, that share one name, or that would replace an input.

    Args:
        paths: files to write.
        inputs: files that are read: a record, an engine with what lies beside it, or the folder of a float model.

    Raises:
        FileProblemError: a folder is missing or not writable.
        OptionError: two outputs have the same path, or an output has an input's.
    """
    from dq_deploy.artifacts import check_writable

    given = [path for path in paths if path is not None]
    for path in given:
        check_writable(path)
    resolved = [path.resolve() for path in given]
    taken = {path.resolve() for entry in inputs if entry is not None for path in _read_with(entry)}
    for index, path in enumerate(resolved):
        if path in resolved[:index]:
            raise OptionError(f"two outputs are named {given[index]}, expected different names; rename one")
        if path in taken:
            raise OptionError(f"output {given[index]} would replace a file that is read; give it another name")


def _read_with(path: Path) -> list[Path]:
    """A file and what belongs to it; of a model folder the files that a model consists of."""
    if path.is_dir():
        names = ("diffusion_pytorch_model*", "config.json", "scheduler_config.json", "model_index.json")
        return [file for name in names for file in (*path.glob(name), *path.glob(f"*/{name}"))]
    if path.suffix in (".pt", ".safetensors"):
        return [path]
    return [path, *(path.with_name(path.name + end) for end in (".json", ".data", ".layers.json"))]


def numbers_from_text(text: str, option: str, *, low: int, high: int | None = None) -> tuple[int, ...]:
    """Integers of a list such as `1,4,8` or `0-9`.

    Raises:
        OptionError: not a list of integers, or one out of range.
    """
    wanted = f"integers from {low}" + ("" if high is None else f" to {high}")
    values: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise OptionError(f"{option} got {text!r}, expected {wanted} such as 0,1,2 or 0-2")
        ends = int(first), int(last if dash else first)
        for value in ends:
            if value < low or (high is not None and value > high):
                raise OptionError(f"{option} got {value}, expected {wanted}")
        if ends[1] - ends[0] >= LONGEST_LIST:
            raise OptionError(f"{option} got {piece.strip()}, expected at most {LONGEST_LIST} numbers")
        values += range(ends[0], ends[1] + 1)
    if not values:
        raise OptionError(f"{option} got {text!r}, expected {wanted}, in rising ranges")
    return tuple(values)
