"""A record's step is timed in turns with the float graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dq_deploy.bench.worker import Timed, WorkerSettings
from dq_deploy.comparison import Settings, latency

ORDER: list[str] = []


class Engine:
    """A worker that takes 2 ms for a record and 6, later 8, for a graph."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings, self.turn = settings, 0

    def time(self, **asked: Any) -> Timed:
        ORDER.append(str(self.settings.engine))
        self.turn += 1
        latency_ms = (2.0, 2.0) if self.settings.engine == "native" else (4.0 + 2 * self.turn,) * 2
        return Timed(latency_ms=latency_ms, peak_mib=1.0, finite_check_ms=0.0)


def test_record_and_float_graph_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def workers(settings: dict[str, WorkerSettings]) -> Iterator[dict[str, Engine]]:
        yield {name: Engine(value) for name, value in settings.items()}

    monkeypatch.setattr(latency, "workers", workers)
    found = latency.step_time(Path("a.pt"), Path("float.onnx"), Settings(rounds=3, threads=1))
    assert ORDER == ["native", "onnxruntime", "onnxruntime", "native", "native", "onnxruntime"]
    assert (found.ms, found.float_ms, found.ratio, found.engine, found.turns) == (2.0, 8.0, 4.0, "native", 3)
