"""The asking side of a peer that stays open between turns (`benchmarks/peers/turns.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dq_deploy.bench.worker import Timed, TimeRequest
from dq_deploy.processes import WorkerProcess


@dataclass(frozen=True, kw_only=True)
class PeerSettings:
    """What the peer opens; see `Settings` there."""

    engine: str
    folder: str
    batch: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class PeerOpened:
    """That the peer is ready: ms with a first call, and the precision that it reports."""

    load_ms: float
    precision: str


@dataclass(frozen=True, kw_only=True)
class DrawRequest:
    """Draw what `check.npz` in the folder asks for, into the NumPy file `out`."""

    folder: str
    out: str


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """How many samples were drawn."""

    count: int


class PeerProcess(WorkerProcess):
    """A peer's process; a context manager.

    Attributes:
        load_ms: what opening it took, with its first call.
        precision: that it reports.
    """

    def __init__(self, command: Sequence[str], settings: PeerSettings, environment: Mapping[str, str]) -> None:
        """Start the process and wait until the peer is open.

        Args:
            command: Python of its environment and its file.
            settings: what it opens.
            environment: variables it gets besides this process's.

        Raises:
            DqError: it ended instead, or failed; the message is its last line.
        """
        counted = {"OMP_NUM_THREADS": str(settings.threads), **environment}
        super().__init__((*command, "serve"), environment=counted)
        self._folder = settings.folder
        try:
            opened = self.ask(settings, PeerOpened)
        except BaseException:
            self.close()
            raise
        self.load_ms, self.precision = opened.load_ms, opened.precision

    def time(self, *, sizes: Mapping[str, int] | None = None, **request: Any) -> Timed:
        """One turn; arguments as of `dq_deploy.bench.worker.Worker.time`."""
        return self.ask(TimeRequest(sizes=dict(sizes or {}), **request), Timed)

    def draw(self, out: Path) -> int:
        """What is compared with the float model, into a NumPy file; how many samples."""
        return self.ask(DrawRequest(folder=self._folder, out=str(out)), Drawn).count
