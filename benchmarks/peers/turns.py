"""A peer that stays open between turns: the answering side of `benchmarks.unets.peer_process`, with numpy alone.

    python openvino_turns.py prepare FOLDER ENGINE     # quantizes, in the folder of `benchmarks.unets.float_model`
    python openvino_turns.py serve PID                 # answers requests until there are no more

The lines are those of `dq_deploy.processes`: a request with a number, and an answer with the same number.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from job import Denoise, Inputs, outputs_of, peak_mib


@dataclass(frozen=True)
class Settings:
    """What is opened.

    Attributes:
        engine: its name in `benchmarks.unets.engines`.
        folder: of `benchmarks.unets.float_model`.
        batch: samples of a call, which an engine may fix its shapes to.
        threads: of a call.
    """

    engine: str
    folder: str
    batch: int
    threads: int

    def example(self) -> Inputs:
        """The inputs that are timed."""
        return dict(np.load(Path(self.folder) / f"inputs-{self.batch}.npz"))


@dataclass(frozen=True)
class Opened:
    """An engine that is ready: its call, and the precision that it says it computes in."""

    run: Denoise
    precision: str


class Turns:
    """The requests."""

    def __init__(self, open_engine: Callable[[Settings], Opened]) -> None:
        self._open, self._run = open_engine, None
        self._settings: Settings | None = None

    def answer(self, name: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """The result of one request."""
        if name == "PeerSettings":
            return self._opened(Settings(**value))
        if name == "TimeRequest":
            return self._timed(value)
        if name == "DrawRequest":
            return self._drawn(value)
        raise ValueError(f"got the request {name}, expected PeerSettings, TimeRequest or DrawRequest")

    def _opened(self, settings: Settings) -> dict[str, Any]:
        start = time.perf_counter()
        opened = self._open(settings)
        opened.run(settings.example())
        self._run, self._settings = opened.run, settings
        return {"load_ms": (time.perf_counter() - start) * 1e3, "precision": opened.precision}

    def _timed(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        if asked["batch"] != self._settings.batch:
            raise ValueError(f"got batch {asked['batch']}, expected {self._settings.batch}, which it was opened with")
        inputs, run, found = self._settings.example(), self._run, []
        for _ in range(asked["warmup"]):
            run(inputs)
        began = time.perf_counter()
        while len(found) < asked["runs"] or time.perf_counter() - began < asked["seconds"]:
            start = time.perf_counter()
            run(inputs)
            found.append((time.perf_counter() - start) * 1e3)
        return {"latency_ms": found, "peak_mib": peak_mib(), "finite_check_ms": 0.0, "gpu_memory": None}

    def _drawn(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        found = outputs_of(self._run, Path(asked["folder"]), self._settings.batch)
        np.save(asked["out"], found)
        return {"count": len(found)}


def serve(open_engine: Callable[[Settings], Opened]) -> None:
    """Answer requests until there are no more."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    turns = Turns(open_engine)
    for line in requests:
        message = json.loads(line)
        try:
            told = {"result": turns.answer(message["request"], message["value"])}
        except Exception as error:  # told to who asked
            traceback.print_exc()
            words = traceback.format_exception_only(error)[-1].strip().splitlines()[-1]
            told = {"error": {"kind": "Exception", "message": words, "exit_code": 1, "errno": None, "last_line": words}}
        answers.write(json.dumps({"number": message["number"], **told, "peak_mib": peak_mib()}) + "\n")
        answers.flush()
    os._exit(0)  # what libraries do at the end of a process can only fail


def main(open_engine: Callable[[Settings], Opened], prepare: Callable[[Path, str], None]) -> None:
    """Entry of a peer's file."""
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]), sys.argv[3])
    else:
        serve(open_engine)


def calibration(folder: Path, batch: int) -> list[Inputs]:
    """Calibration inputs, so many samples at a time."""
    arrays = dict(np.load(folder / "calibration.npz"))
    count = len(next(iter(arrays.values())))
    return [{n: value[i : i + batch] for n, value in arrays.items()} for i in range(0, count, batch)]
