"""The side that answers: the loop of a worker process."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, Generic

from dq_deploy import errors
from dq_deploy.errors import DqError, explained
from dq_deploy.processes.memory import peak_mib
from dq_deploy.processes.messages import Failure, Message, RequestT, Tell, as_json, from_json

INTERRUPTED = 130
READER_GONE = 141

_LOOK_EVERY_S = 0.2
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Handler(Generic[RequestT]):
    """What a worker does for one class of request: a function of it and of `Tell`, which returns the result."""

    request: type[RequestT]
    perform: Callable[[RequestT, Tell], Message]


def serve(*handlers: Handler[Any], expendable: bool = False) -> None:
    """Entry of a worker process: answers requests until there are no more, then ends the process.

    Its last argument is the id of the process that started it.

    Args:
        handlers: one for each class of request.
        expendable: have the kernel end it at once with the thread that started it, and before others where memory
            runs out.
    """
    parent = int(sys.argv[-1])
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # what a library prints must not get between the answers
    sys.stdout = sys.stderr
    if expendable:
        _go_first(parent)
    lines: SimpleQueue[str | None] = SimpleQueue()
    threading.Thread(target=_read, args=(requests, lines, parent), daemon=True).start()
    by_name = {handler.request.__name__: handler for handler in handlers}
    code = 0
    try:
        while (line := lines.get()) is not None:
            _answer(json.loads(line), by_name, answers)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        code = READER_GONE
    # nothing is left to do, and what libraries do at the end of a process can only fail
    sys.stderr.flush()
    os._exit(code)


def _read(requests: IO[str], lines: SimpleQueue[str | None], parent: int) -> None:
    """Queue the requests; end this process and what it has started when its starter has ended, in mid-work too."""
    for line in requests:
        lines.put(line)
    lines.put(None)
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _answer(message: Mapping[str, Any], handlers: Mapping[str, Handler[Any]], answers: IO[str]) -> None:
    """Do what one request asks for."""

    def send(key: str, value: Message) -> None:
        line = json.dumps({"number": message["number"], key: as_json(value), "peak_mib": peak_mib()})
        answers.write(line + "\n")
        answers.flush()

    try:
        handler = handlers[message["request"]]
        result = handler.perform(from_json(handler.request, message["value"]), lambda event: send("event", event))
        send("result", result)
    except BrokenPipeError:
        raise
    except Exception as error:
        if not isinstance(error, DqError):
            traceback.print_exc()
        send("error", _failure_of(error))


def _failure_of(error: Exception) -> Failure:
    message, code = explained(error)
    known = (kind.__name__ for kind in type(error).__mro__ if kind.__module__ in (errors.__name__, "builtins"))
    number = error.errno if isinstance(error, OSError) else None
    last = traceback.format_exception_only(error)[-1].strip().splitlines()[-1]
    return Failure(kind=next(known), message=message, exit_code=code, errno=number, last_line=last)


def _go_first(parent: int) -> None:
    """Have the kernel end this process when its starter ends, and where memory ends, in its starter's place."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
