"""What every command shares: one clear line on a failure, exit codes, JSON files, lists of numbers.

Exit codes: 0 done, 1 internal error, 2 the user's mistake, 3 a demanded guarantee does not hold,
4 another process of the same run ended, 129 the terminal is gone, 130 interrupted, 143 terminated, 141 the reader of
our output went away.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dq_deploy.cli.frame.failures import EXIT_USAGE, failure_of, in_flags, in_flags_throughout, one_line, running
from dq_deploy.cli.frame.outputs import check_outputs, held_outputs
from dq_deploy.cli.frame.paths import checked_paths
from dq_deploy.cli.frame.streams import columns, usable_streams
from dq_deploy.cli.frame.torchrun import join_others, launched, stream_of_failure, why_terminated
from dq_deploy.errors import DqWarning, OptionError, ReaderGoneError

if TYPE_CHECKING:
    from rich.console import Console

EXIT_HUNG_UP = 129
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

__all__ = [
    "EXIT_USAGE",
    "check_outputs",
    "console",
    "in_flags",
    "in_flags_throughout",
    "numbers_from_text",
    "progress",
    "refuse",
    "run",
    "stderr_console",
    "warn",
    "write_json",
]

RESEND_SECONDS = 0.05

LONGEST_LIST = 1_000_000
"""Numbers that a range such as 0-9 may stand for."""


class _Stopped(BaseException):
    """A signal ended the command; passes through `except Exception` so that clean-up code runs."""

    def __init__(self, word: str, code: int) -> None:
        super().__init__(word)
        self.word = word
        self.code = code


def _terminate(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGHUP:
        raise _Stopped("the terminal is gone", EXIT_HUNG_UP)
    raise _Stopped("terminated", EXIT_TERMINATED)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP end the command as Ctrl-C does; a SIGHUP that is ignored, as by nohup, stays so."""
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, _terminate) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _not_swallowed(unraisable: sys.UnraisableHookArgs) -> None:
    """Send a signal again that met Python in a callback, as of an import's lock, where its exception goes nowhere."""
    again = {KeyboardInterrupt: signal.SIGINT, _Stopped: signal.SIGTERM}.get(unraisable.exc_type)
    if isinstance(unraisable.exc_value, _Stopped) and unraisable.exc_value.code == EXIT_HUNG_UP:
        again = signal.SIGHUP
    if again is None:
        sys.__unraisablehook__(unraisable)
    else:  # a moment later: at once it would be swallowed here
        threading.Timer(RESEND_SECONDS, os.kill, (os.getpid(), again)).start()


def warn(message: str) -> None:
    """Print one `warning: ...` line on stderr, options of a library message as flags."""
    print(one_line(f"warning: {in_flags(message)}"), file=sys.stderr, flush=True)


def refuse(wrong: bool, message: str) -> None:
    """Raise the message as an OptionError where `wrong` holds."""
    if wrong:
        raise OptionError(message)


def _fail(message: str, code: int) -> NoReturn:
    stream = stream_of_failure()
    if stream is not None:
        print(one_line(f"error: {message}"), file=stream, flush=True)
    raise SystemExit(code)


def _quiet_libraries() -> None:
    """Keep third-party chatter off stderr, and third-party code off the network."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("default", DqWarning)  # the same line once
    warnings.showwarning = _in_one_line
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _in_one_line(message: Warning | str, *_: object, **__: object) -> None:
    """A warning of this package, as every other one."""
    warn(str(message))


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
    def wrapped(*args: Any, debug: bool = False, version: bool = False, **kwargs: Any) -> None:
        state["debug"] = debug
        if not debug:
            _quiet_libraries()
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:  # typer would swallow it
            raise _Stopped("interrupted", EXIT_INTERRUPTED) from None

    names = tuple(signature.parameters)
    own = (checked_paths(parameter, names) for parameter in signature.parameters.values())
    parameters = [*own, option, _version_option()]
    wrapped.__dict__["__signature__"] = signature.replace(parameters=parameters)
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


def run(command: Callable[..., None], argv: Sequence[str] | None = None, *, many: bool = False) -> NoReturn:
    """Run one command function and leave the process with its exit code.

    Args:
        command: a function with typer-annotated parameters; its docstring is the help text.
        argv: arguments, by default those of the process.
        many: torchrun may start several processes of the command, which share its work.

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
    hook, sys.unraisablehook = sys.unraisablehook, _not_swallowed
    try:
        with _ended_by_signals(), usable_streams(), launched(), running(prog, sys.argv[1:] if argv is None else argv):
            _perform(app, None if argv is None else list(argv), prog, state, many)
    finally:
        sys.unraisablehook = hook
    raise AssertionError("not reached: a command ends with an exit code")


def _perform(app: typer.Typer, argv: list[str] | None, prog: str, state: dict[str, bool], many: bool) -> NoReturn:
    """Run the command with its outputs held; always raises SystemExit."""
    try:
        join_others(prog, many=many)
        with held_outputs():
            try:
                code = typer.main.get_command(app).main(args=argv, prog_name=prog, standalone_mode=False)
            finally:
                sys.stdout.flush()
        if code == EXIT_INTERRUPTED:  # typer met the interrupt outside the command
            _fail("interrupted", EXIT_INTERRUPTED)
        raise SystemExit(code if isinstance(code, int) else 0)
    except ReaderGoneError as error:
        raise SystemExit(error.exit_code) from None
    except _Stopped as stop:
        _fail(why_terminated(stop.word), stop.code)
    except KeyboardInterrupt:
        _fail("interrupted", EXIT_INTERRUPTED)
    except Exception as error:
        if state["debug"]:
            traceback.print_exc()
        _fail(*failure_of(error, prog))


def _version_option() -> inspect.Parameter:
    def show(asked: bool) -> None:
        if asked:
            from dq_deploy.version import __version__

            print(f"dq_deploy {__version__}")
            raise typer.Exit

    return inspect.Parameter(
        "version",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[
            bool, typer.Option("--version", help="Print the version and exit.", callback=show, is_eager=True)
        ],
    )


def console() -> Console:
    """A rich console on stdout for tables, at least 100 columns wide where stdout is no terminal.

    No markup: names of files and layers are shown as they are.
    """
    from rich.console import Console

    least = 40 if sys.stdout.isatty() else 100
    return Console(width=columns(least, sys.stdout), markup=False, emoji=False)


def stderr_console() -> Console:
    """A rich console on stderr for progress bars."""
    from rich.console import Console

    return Console(stderr=True, width=columns(40, sys.stderr), markup=False, emoji=False)


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
    from rich.progress import Progress

    with Progress(console=stderr_console(), transient=True) as bar:
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


def _is_number(text: str) -> bool:
    """Whether a text is a whole number of ASCII digits, of which Python reads no more than 4300."""
    return text.isascii() and text.isdecimal() and len(text) < 20


def numbers_from_text(text: str, option: str, *, low: int, high: int | None = None) -> tuple[int, ...]:
    """Integers of a list such as `1,4,8` or `0-9`.

    Raises:
        OptionError: not a list of integers, or one out of range.
    """
    wanted = f"integers from {low}" + ("" if high is None else f" to {high}")
    values: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not _is_number(first) or (dash and not _is_number(last)):
            example = f"{low},{low + 1},{low + 2} or {low}-{low + 2}"
            raise OptionError(f"{option} got {text[:80]!r}, expected {wanted} such as {example}")
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
