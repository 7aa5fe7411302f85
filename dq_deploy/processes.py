"""Work in a process of its own: one protocol for all of them, and how much memory a process has had.

The process that starts a worker writes requests to it, and reads what it tells, one JSON object a line::

    {"request": "BuildRequest", "value": {...}}
    {"event": {...}, "peak_mib": 210.4}
    {"result": {...}, "peak_mib": 412.0}
    {"error": {"kind": "OptionError", "message": "...", "exit_code": 2, "errno": null}, "peak_mib": 412.0}

A request is answered by any number of events and then by one result or error. All of them are dataclasses on both
sides; the file of a worker holds its requests, what it answers, and the functions that do the work. What libraries
print goes to stderr and never between the answers. A worker dies with the process that started it, and is the first to
be ended where memory runs out.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import traceback
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Generic, Protocol, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from dq_deploy import errors
from dq_deploy.errors import DqError, explained

INTERRUPTED = 130
READER_GONE = 141

_LOOK_EVERY_S = 0.2
_LOG_LINES = 400
_PR_SET_PDEATHSIG = 1


class Message(Protocol):
    """Any dataclass; its values are JSON's, tuples, or dataclasses again."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


RequestT = TypeVar("RequestT", bound=Message)
MessageT = TypeVar("MessageT", bound=Message)
EventT = TypeVar("EventT", bound=Message)

Tell = Callable[[Message], None]
"""Sends an event to the process that asked."""


def peak_mib(process: int | None = None) -> float | None:
    """Highest resident memory so far, in MiB.

    getrusage is no good here: its peak survives exec, so a child starts with its parent's.

    Args:
        process: its id; None is this one.

    Returns:
        None where the process is gone or the system has no /proc.
    """
    try:
        text = Path(f"/proc/{process or 'self'}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == "VmHWM":
            return int(value.split()[0]) / 1024
    return None


def own_peak_mib() -> float:
    """As `peak_mib`, of this process.

    Raises:
        DqError: the system does not tell.
    """
    found = peak_mib()
    if found is None:
        raise DqError("/proc/self/status has no VmHWM, expected Linux; memory cannot be measured here")
    return found


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What a worker raised instead of a result.

    Attributes:
        kind: class of the exception; of our own errors the one of `dq_deploy.errors`.
        message: one line.
        exit_code: what a command ends with.
        errno: of a system's error.
    """

    kind: str
    message: str
    exit_code: int
    errno: int | None = None

    @property
    def own_error(self) -> DqError | None:
        """The exception of `dq_deploy.errors` that the worker raised; None where it was another."""
        kind = getattr(errors, self.kind, None)
        return kind(self.message) if isinstance(kind, type) and issubclass(kind, DqError) else None


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a worker ended that gave no answer.

    Attributes:
        code: exit code; negative is the signal that ended it.
        log: last lines of what it and its libraries printed.
        seconds: since the request.
        peak_mib: highest memory seen.
    """

    code: int
    log: tuple[str, ...]
    seconds: float
    peak_mib: float | None

    @property
    def signal_name(self) -> str | None:
        """As `SIGKILL`, where a signal ended it."""
        return signal.Signals(-self.code).name if self.code < 0 else None

    @property
    def words(self) -> str:
        """For behind "the process"."""
        if self.signal_name is not None:
            hint = "; is there enough memory?" if self.signal_name == "SIGKILL" else ""
            return f"was ended by {self.signal_name}{hint}"
        return f"ended with code {self.code}" + (f": {self.log[-1]}" if self.log else "")

    @property
    def last_words(self) -> str:
        """Its last line, or how it ended."""
        return self.log[-1] if self.log and self.code >= 0 else self.words.partition(";")[0]


class WorkerError(DqError):
    """A worker raised; its message, with `failure` for the rest."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.exit_code = failure.exit_code


class WorkerEndedError(DqError):
    """A worker ended without an answer; `ending` says how."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(f"a worker process {ending.words}")
        self.ending = ending


class WorkerTimeoutError(DqError):
    """A worker was ended at its time limit; `ending` says what it had taken until then."""

    def __init__(self, limit_s: float, ending: Ending) -> None:
        super().__init__(f"a worker process took more than {limit_s:g} s")
        self.limit_s, self.ending = limit_s, ending


# ----------------------------------------------------------------------------- the side that asks


class _Lines:
    """Whole lines from the pieces a pipe gives."""

    def __init__(self) -> None:
        self._rest = b""

    def of(self, data: bytes) -> list[str]:
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in whole]


class WorkerProcess:
    """A worker process, ended when the context is left.

    Attributes:
        peak_mib: highest memory seen so far, or None.

    Args:
        command: what is run, as `command_of` gives it.
        environment: variables it gets besides this process's.
        log: gets all it and its libraries print, a line at a time.
        watch_memory: look at its memory while it works, for what it had when it is killed.
        grace_s: how long it may take to end by itself when it is interrupted; 0 ends it at once.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        log: IO[str] | None = None,
        watch_memory: bool = False,
        grace_s: float = 0.0,
    ) -> None:
        """Start it.

        Raises:
            OSError: it cannot be started.
        """
        self.peak_mib: float | None = None
        self._log_file, self._watch, self._grace_s = log, watch_memory, grace_s
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._answers, self._said = _Lines(), _Lines()
        self._waiting: deque[str] = deque()
        # a session of its own: Ctrl-C reaches the asking process alone, which then ends this one
        self._process = subprocess.Popen(
            [*command, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if environment is None else {**os.environ, **environment},
            start_new_session=True,
        )

    def ask(
        self,
        request: Message,
        result: type[MessageT],
        *,
        event: type[EventT] | None = None,
        on_event: Callable[[EventT], None] | None = None,
        time_limit_s: float | None = None,
    ) -> MessageT:
        """Send a request and wait for its result; an exception that arrives meanwhile leaves the worker running.

        Args:
            request: what to do.
            result: class of the answer.
            event: class of the events.
            on_event: called with each.
            time_limit_s: None is no limit.

        Raises:
            WorkerError: the worker raised.
            WorkerEndedError: it ended without an answer.
            WorkerTimeoutError: it took too long, and was ended.
        """
        started = time.monotonic()
        assert self._process.stdin is not None
        line = json.dumps({"request": type(request).__name__, "value": _as_json(request)})
        with contextlib.suppress(BrokenPipeError):  # its end is reported below
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        deadline = None if time_limit_s is None else started + time_limit_s
        while True:
            answer = self._next_line(deadline)
            if answer is None:
                ending = self._ended(started)
                if deadline is not None and time_limit_s is not None and time.monotonic() > deadline:
                    raise WorkerTimeoutError(time_limit_s, ending)
                raise WorkerEndedError(ending)
            message = json.loads(answer)
            self.peak_mib = message.get("peak_mib") or self.peak_mib
            if "error" in message:
                raise WorkerError(_from_json(Failure, message["error"]))
            if "result" in message:
                return _from_json(result, message["result"])
            if event is not None and on_event is not None:
                on_event(_from_json(event, message["event"]))

    @property
    def log(self) -> tuple[str, ...]:
        """Last lines of what it printed so far, empty ones left out."""
        return tuple(line for line in self._log if line.strip())

    def _next_line(self, deadline: float | None) -> str | None:
        """The next line it tells; None where it has ended, or the deadline has passed."""
        out, err = self._process.stdout, self._process.stderr
        assert out is not None
        assert err is not None
        while not self._waiting:
            if out.closed:
                return None
            with selectors.DefaultSelector() as selector:
                for stream in (out, err):
                    if not stream.closed:
                        selector.register(stream, selectors.EVENT_READ)
                timed = deadline is not None or self._watch
                for key, _ in selector.select(timeout=_LOOK_EVERY_S if timed else None):
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        (out if key.fileobj is out else err).close()
                    elif key.fileobj is out:
                        self._waiting.extend(self._answers.of(data))
                    else:
                        self._take_log(self._said.of(data))
            if self._watch and (seen := peak_mib(self._process.pid)) is not None:
                self.peak_mib = max(seen, self.peak_mib or 0.0)
            if deadline is not None and time.monotonic() > deadline:
                return None
        return self._waiting.popleft()

    def _take_log(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._log.append(line)
            if self._log_file is not None:
                self._log_file.write(line + "\n")

    def _ended(self, started: float) -> Ending:
        """End it where it still runs, and read the rest of what it printed."""
        out, err = self._process.stdout, self._process.stderr
        seconds = time.monotonic() - started
        if out is not None and not out.closed:
            self._kill()
        code = self._process.wait()
        if err is not None and not err.closed:
            os.set_blocking(err.fileno(), False)  # a process of its own may hold the pipe open
            with contextlib.suppress(BlockingIOError):
                while data := os.read(err.fileno(), 1 << 16):
                    self._take_log(self._said.of(data))
        self._take_log(self._said.of(b"\n"))
        return Ending(code=code, log=self.log, seconds=seconds, peak_mib=self.peak_mib)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End it, and what it has started."""
        if self._process.poll() is None and self._grace_s > 0:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self._grace_s)
        if self._process.poll() is None:
            self._kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self) -> Self:
        """The process itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        """End it."""
        self.close()


def command_of(module: str) -> tuple[str, ...]:
    """What runs the worker of a module that calls `serve`."""
    return sys.executable, "-m", module


# ----------------------------------------------------------------------------- the side that answers


@dataclass(frozen=True)
class Handler(Generic[RequestT]):
    """What a worker does for one class of request: a function of it and of `Tell`, which returns the result."""

    request: type[RequestT]
    perform: Callable[[RequestT, Tell], Message]


def serve(*handlers: Handler[Any]) -> None:
    """Entry of a worker process: answers requests until there are no more, then ends the process.

    Its last argument is the id of the process that started it.
    """
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # what a library prints must not get between the answers
    sys.stdout = sys.stderr
    _die_with(int(sys.argv[-1]))
    by_name = {handler.request.__name__: handler for handler in handlers}
    code = 0
    try:
        for line in requests:
            _answer(json.loads(line), by_name, answers)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        code = READER_GONE
    # nothing is left to do, and what libraries do at the end of a process can only fail
    sys.stderr.flush()
    os._exit(code)


def _answer(message: Mapping[str, Any], handlers: Mapping[str, Handler[Any]], answers: IO[str]) -> None:
    """Do what one request asks for."""

    def send(key: str, value: Message) -> None:
        answers.write(json.dumps({key: _as_json(value), "peak_mib": peak_mib()}) + "\n")
        answers.flush()

    handler = handlers[message["request"]]
    try:
        result = handler.perform(_from_json(handler.request, message["value"]), lambda event: send("event", event))
    except BrokenPipeError:
        raise
    except Exception as error:
        if not isinstance(error, DqError):
            traceback.print_exc()
        send("error", _failure_of(error))
    else:
        send("result", result)


def _failure_of(error: Exception) -> Failure:
    message, code = explained(error)
    known = (kind.__name__ for kind in type(error).__mro__ if kind.__module__ in (errors.__name__, "builtins"))
    number = error.errno if isinstance(error, OSError) else None
    return Failure(kind=next(known), message=message, exit_code=code, errno=number)


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its starter ends, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)
    # where memory ends, this process goes, not its starter
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


# ----------------------------------------------------------------------------- dataclasses and JSON


def _as_json(value: Message) -> dict[str, Any]:
    return dataclasses.asdict(value)


def _from_json(kind: type[MessageT], value: Mapping[str, Any]) -> MessageT:
    """A dataclass from the JSON values of `_as_json`.

    Raises:
        TypeError: a field is missing or unknown.
    """
    hints = get_type_hints(kind)
    return kind(**{name: _value_of(hints.get(name, Any), entry) for name, entry in value.items()})


def _value_of(kind: Any, value: Any) -> Any:
    """A JSON value as the annotated type of its field: dataclasses and tuples are what JSON does not have."""
    if value is None:
        return None
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _from_json(kind, value)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (kind,) = (entry for entry in arguments if entry is not type(None))
        return _value_of(kind, value)
    if origin is tuple:
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_value_of(entry, item) for entry, item in zip(kinds, value, strict=True))
    if origin in (dict, Mapping):
        return {key: _value_of(arguments[1], item) for key, item in value.items()}
    return value
