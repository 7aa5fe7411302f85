"""How long one step of a record takes, beside the float graph on ONNX Runtime, the two taking turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dq_deploy.bench.worker import WorkerSettings, workers
from dq_deploy.comparison.settings import Settings

WARM_UP = 2
FLOAT_ENGINE = "onnxruntime"


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Milliseconds of one step at batch 1, medians over all runs.

    Attributes:
        ms: of the record.
        float_ms: of the float graph on ONNX Runtime.
        ratio: median over the turns of float over record: above 1 the record is faster.
        engine: that ran the record.
        turns: how many; None where another program timed it.
    """

    ms: float
    float_ms: float
    ratio: float
    engine: str
    turns: int | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values; turns only where they are known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def step_time(path: Path, float_graph: Path, settings: Settings, *, sizes: Mapping[str, int] | None = None) -> StepTime:
    """Time a record or its exported graph.

    Args:
        path: of the record or the graph.
        float_graph: ONNX file.
        settings: turns, runs and threads.
        sizes: of both inputs' axes that vary, by name; by default what the file says.

    Raises:
        DqError: an engine cannot be opened.
    """
    files = {
        "own": WorkerSettings(path=str(path), engine=settings.engine, threads=settings.threads),
        "float": WorkerSettings(path=str(float_graph), engine=FLOAT_ENGINE, threads=settings.threads),
    }
    turns: dict[str, list[tuple[float, ...]]] = {name: [] for name in files}
    with workers(files) as running:
        for turn in range(settings.rounds):
            names = list(files) if turn % 2 == 0 else list(reversed(files))
            for name in names:
                answer = running[name].time(
                    batch=1, warmup=WARM_UP, runs=settings.runs, seconds=settings.seconds, sizes=sizes
                )
                turns[name].append(answer.latency_ms)
    ratios = [float(np.median(b) / np.median(a)) for a, b in zip(turns["own"], turns["float"], strict=True)]
    medians = {name: float(np.median(np.concatenate(series))) for name, series in turns.items()}
    return StepTime(
        ms=medians["own"],
        float_ms=medians["float"],
        ratio=float(np.median(ratios)),
        engine=settings.engine,
        turns=settings.rounds,
    )
