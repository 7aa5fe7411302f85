"""The side that asks: a worker process, its answers, and how it ended."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Self

from dq_deploy.errors import DqError
from dq_deploy.processes.memory import peak_mib
from dq_deploy.processes.messages import EventT, Failure, Message, MessageT, as_json, from_json

_LOOK_EVERY_S, _SETTLE_EVERY_S = 0.2, 0.02
_EXIT_S = 10.0  # from the end of its answers to the end of a process
_PIECE, _LAST_PIECES = 1 << 16, 64
_LOG_LINES = 400


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
        """Its last line, or its exit code."""
        return self.log[-1] if self.log else f"ended with code {self.code}"


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


class _Lines:
    """Whole lines from the pieces a pipe gives."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def of(self, data: bytes) -> list[str]:
        first, *others = data.split(b"\n")
        self._pieces.append(first)
        if not others:
            return []
        whole = [b"".join(self._pieces), *others[:-1]]
        self._pieces = [others[-1]]
        return [line.decode(errors="replace") for line in whole]


class WorkerProcess:
    """A worker process, ended when the context is left.

    It has a session of its own: Ctrl-C reaches the asking process alone, which then ends the worker and what that has
    started. It outlives the thread that started it.

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
        self._unsent: deque[memoryview] = deque()
        self._waiting: deque[str] = deque()
        self._numbers = itertools.count(1)
        self._process = subprocess.Popen(
            [*command, str(os.getpid())],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if environment is None else {**os.environ, **environment},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._in, self._out, self._err = self._process.stdin, self._process.stdout, self._process.stderr
        for stream in (self._in, self._out, self._err):
            os.set_blocking(stream.fileno(), False)

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
            TypeError: JSON does not hold the request.
        """
        started, number = time.monotonic(), next(self._numbers)
        line = json.dumps({"number": number, "request": type(request).__name__, "value": as_json(request)})
        self._unsent.append(memoryview(line.encode() + b"\n"))
        for answer in self._told(None if time_limit_s is None else started + time_limit_s):
            message = json.loads(answer)
            self.peak_mib = message.get("peak_mib") or self.peak_mib
            if message["number"] != number:  # answers a request whose wait was interrupted
                continue
            if "error" in message:
                raise WorkerError(from_json(Failure, message["error"]))
            if "result" in message:
                return from_json(result, message["result"])
            if event is not None and on_event is not None:
                on_event(from_json(event, message["event"]))
        late = not self._out.closed and not self._has_ended
        ending = self._ended(started)
        if late and time_limit_s is not None:
            raise WorkerTimeoutError(time_limit_s, ending)
        raise WorkerEndedError(ending)

    @property
    def log(self) -> tuple[str, ...]:
        """Last lines of what it printed so far, empty ones left out."""
        return tuple(line for line in self._log if line.strip())

    def _told(self, deadline: float | None) -> Iterator[str]:
        """The lines it tells until it ends or the deadline passes, and what it had told by then."""
        over = False
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if over or self._out.closed:
                return
            left = _LOOK_EVERY_S if deadline is None else min(_LOOK_EVERY_S, deadline - time.monotonic())
            over = left <= 0 or self._has_ended
            if over:
                self._drain()
            else:
                self._exchange(left)

    def _exchange(self, timeout_s: float) -> bool:
        """Write what is to be sent and read what has come, at most one piece each; whether there was any."""
        with selectors.DefaultSelector() as selector:
            for stream in (self._out, self._err):
                if not stream.closed:
                    selector.register(stream, selectors.EVENT_READ)
            if self._unsent and not self._in.closed:
                selector.register(self._in, selectors.EVENT_WRITE)
            ready = {key.fileobj for key, _ in selector.select(timeout_s)}
        if self._in in ready:
            self._send()
        if self._out in ready:
            self._waiting.extend(self._answers.of(self._piece(self._out)))
        if self._err in ready:
            self._take_log(self._said.of(self._piece(self._err)))
        if self._watch and (seen := peak_mib(self._process.pid)) is not None:
            self.peak_mib = max(seen, self.peak_mib or 0.0)
        return bool(ready)

    def _send(self) -> None:
        try:
            sent = os.write(self._in.fileno(), self._unsent[0])
        except BrokenPipeError:  # it reads no more: its end is reported by who asked
            self._unsent.clear()
            return
        if sent == len(self._unsent[0]):
            self._unsent.popleft()
        else:
            self._unsent[0] = self._unsent[0][sent:]

    def _piece(self, stream: IO[bytes]) -> bytes:
        data = os.read(stream.fileno(), _PIECE)
        if not data:
            stream.close()
        return data

    def _drain(self) -> None:
        """Read what is in the pipes; a process that goes on writing is not followed for ever."""
        self._unsent.clear()
        for _ in range(_LAST_PIECES):
            if not self._exchange(0.0):
                break

    def _take_log(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._log.append(line)
            if self._log_file is not None:
                self._log_file.write(line + "\n")

    @property
    def _has_ended(self) -> bool:
        """Whether it has ended by now; it is not reaped by this, so that its group keeps its number."""
        if self._process.returncode is not None:
            return True
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def _settle(self, seconds: float) -> None:
        """Let it end by itself, and read what it prints meanwhile: it must not wait for a reader."""
        until = time.monotonic() + seconds
        while not self._has_ended and time.monotonic() < until:
            self._exchange(_SETTLE_EVERY_S)

    def _ended(self, started: float) -> Ending:
        """End it where it still runs, and read the rest of what it printed."""
        seconds = time.monotonic() - started
        if self._out.closed:
            self._settle(_EXIT_S)
        self._reap()
        self._drain()
        self._take_log(self._said.of(b"\n"))
        return Ending(code=self._process.returncode, log=self.log, seconds=seconds, peak_mib=self.peak_mib)

    def _reap(self) -> None:
        """End what still runs of its group, itself included."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        """End it, and what it has started."""
        try:
            self._unsent.clear()
            if self._grace_s > 0 and not self._has_ended:
                os.kill(self._process.pid, signal.SIGINT)
                self._settle(self._grace_s)
        finally:
            self._reap()
            for stream in (self._in, self._out, self._err):
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
