"""The results file of a part: a row as soon as it is known, and no row twice."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine.commit import commit

DONE = "the part is done"
ATTEMPTS = 2
"""How often a row that failed is tried."""


@dataclass(frozen=True)
class Day:
    """Where a part works.

    Attributes:
        folder: records, plans, compiled kernels and results files.
        rehearse: without a GPU: small shapes, the interpreter, the stand-in for libcuda.
        compute_capability: of the GPU, as `9.0`; in a rehearsal of the one that is meant.
    """

    folder: Path
    rehearse: bool
    compute_capability: str = "9.0"

    @property
    def device(self) -> str:
        """Where torch's tensors are."""
        return "cpu" if self.rehearse else "cuda"


class Book:
    """Rows of one part, in `<folder>/<part>.jsonl`."""

    def __init__(self, day: Day, part: str) -> None:
        """Read what an earlier run of the part left."""
        self.part = part
        self.path = day.folder / f"{part}.jsonl"
        self.rehearsal = day.rehearse
        self.rows: list[dict[str, Any]] = []
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    self.rows.append(json.loads(line))
                except ValueError:  # the part was ended while it wrote
                    continue

    @property
    def done(self) -> bool:
        """Whether the part has come to its end."""
        return any(row["key"] == DONE for row in self.rows)

    def value(self, key: str) -> Any:
        """What a row holds, or None."""
        found = [row["value"] for row in self.rows if row["key"] == key and row["error"] is None]
        return found[-1] if found else None

    def row(self, key: str, measure: Callable[[], Any]) -> Any:
        """Measure and write a row, unless it is there; an error is a row too and the part goes on.

        Returns:
            The value, None where there is an error.
        """
        own = [row for row in self.rows if row["key"] == key]
        if own and (own[-1]["error"] is None or len(own) >= ATTEMPTS):
            return own[-1]["value"]
        began, value, error = time.perf_counter(), None, None
        try:
            value = measure()
        except Exception as problem:  # whatever a GPU brings: it is written down, and the next row has its chance
            trace = traceback.format_exc()[-2000:]
            error = {"kind": type(problem).__name__, "text": str(problem)[:2000], "trace": trace}
        self._write(key, value, error, time.perf_counter() - began)
        return value

    def end(self) -> None:
        """Write that the part is done."""
        if not self.done:
            self._write(DONE, None, None, 0.0)

    def _write(self, key: str, value: Any, error: dict[str, str] | None, seconds: float) -> None:
        row = {
            "part": self.part,
            "key": key,
            "value": value,
            "error": error,
            "seconds": seconds,
            "commit": commit(),
            "rehearsal": self.rehearsal,
        }
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, sort_keys=True) + "\n")
        note = "" if error is None else f"  {error['kind']}: {error['text'].splitlines()[0] if error['text'] else ''}"
        print(f"{self.part}: {key} ({seconds:.1f} s){note}"[:300], flush=True)
