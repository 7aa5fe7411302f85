"""A command that torchrun started: whether it may be several processes, and which of them says what."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from dq_deploy.errors import OptionError

if TYPE_CHECKING:
    from dq_deploy.calibration.sharding import Workers

LATER_S = 1.0
"""Other processes wait so long before they say why they end: the first one says it where it ends as well."""


@dataclass(kw_only=True)
class Launched:
    """One of the processes that torchrun started.

    Attributes:
        rank: of this process, from 0.
        count: of processes on all machines.
        local_rank: of this process on its machine.
        local_count: of processes on its machine.
        stderr: where it says why it ends.
        store: of torch.distributed, shared by all processes; None before `join_others`, and where there is one process.
    """

    rank: int
    count: int
    local_rank: int
    local_count: int
    stderr: TextIO
    store: Any = None


_here: ContextVar[Launched | None] = ContextVar("what torchrun started", default=None)


def _started() -> Launched | None:
    """By torchrun, as its environment tells; None where this process is a command of its own."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, count, local_rank, local_count = (int(os.environ[name]) for name in names)
    return Launched(rank=rank, count=count, local_rank=local_rank, local_count=local_count, stderr=sys.stderr)


@contextlib.contextmanager
def launched() -> Iterator[None]:
    """Inside, only the first of several processes prints."""
    found = _started()
    if found is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        if found.rank:
            nothing = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nothing))
            stack.enter_context(contextlib.redirect_stderr(nothing))
        token = _here.set(found)
        try:
            yield
        finally:
            _here.reset(token)


def join_others(prog: str, *, many: bool) -> None:
    """Let several processes of a command know of each other, or refuse them.

    Args:
        prog: name of the command.
        many: it may be several processes.

    Raises:
        SystemExit: it may not be so many; the first one says so.
    """
    found = _here.get()
    if found is None or found.count == 1:
        return
    from dq_deploy.calibration.sharding import MOST_PROCESSES

    if not many:
        words = f"{prog} was started as {found.count} processes, expected one; run it without torchrun"
    elif found.count > MOST_PROCESSES:
        words = (
            f"{prog} was started as {found.count} processes, expected at most {MOST_PROCESSES}: work is cut into so "
            "many shards; start fewer, with more threads each"
        )
    else:
        from torch.distributed.rendezvous import rendezvous

        found.store, _, _ = next(iter(rendezvous("env://")))
        return
    if found.rank == 0:
        print(f"error: {words}", file=found.stderr, flush=True)
    raise SystemExit(OptionError.exit_code)


def is_first() -> bool:
    """Whether this process writes files and prints."""
    found = _here.get()
    return found is None or found.rank == 0


def is_launched() -> bool:
    """Whether torchrun started this command."""
    return _here.get() is not None


def stream_of_failure() -> TextIO | None:
    """Where this process says in one line why it ends; None where another one has said it."""
    found = _here.get()
    if found is None or found.count == 1:
        return sys.stderr
    if found.store is None:  # nobody knows of the others yet
        return found.stderr if found.rank == 0 else None
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, who ends all when one has ended: this one ends anyway
    if found.rank:
        time.sleep(LATER_S)
    try:
        return found.stderr if found.store.add("said", 1) == 1 else None
    except RuntimeError:  # torchrun, which keeps the store, is gone
        return found.stderr if found.rank == 0 else None


def why_terminated(word: str) -> str:
    """What to say of a signal: torchrun sends it to all processes when one has ended."""
    found = _here.get()
    if found is None or found.count == 1:
        return word
    return (
        f"{word}: torchrun was stopped, or another of its {found.count} processes ended; run the same command, with "
        "any number of processes, to go on with what is finished"
    )


@contextlib.contextmanager
def workers_for(device: str) -> Iterator[Workers]:
    """The processes that share the work of this command.

    Raises:
        OptionError: the device is not there for every process, or processes differ in what decides bits.
    """
    from dq_deploy.calibration.sharding import SHARDS, Workers

    found = _here.get()
    if found is None or found.count == 1:
        yield Workers() if found is None else Workers(shards=SHARDS)
        return
    from dq_deploy.calibration.sharding.group import ProcessGroup, check_alike

    _take_gpu(found, device)
    group = ProcessGroup(found.store, rank=found.rank, count=found.count, device=device)
    check_alike(group)
    yield group
    group.close()  # not where it failed: others may wait for it


def _take_gpu(found: Launched, device: str) -> None:
    """The GPU of this process, one for each."""
    if device != "cuda":
        return
    import torch

    from dq_deploy.methods.run import check_device

    check_device(device)
    if found.local_count > torch.cuda.device_count():
        raise OptionError(
            f"device is cuda with {found.local_count} processes on this machine, expected at most "
            f"{torch.cuda.device_count()}, one for each GPU that torch sees; start fewer"
        )
    torch.cuda.set_device(found.local_rank)
