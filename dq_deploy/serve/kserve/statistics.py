"""What was asked of a model and how long it took, in the form of Triton's statistics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

VERSION = "1"
"""The one version of every model."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Nanoseconds of an answered request: reading it, waiting, being computed, and writing the answer."""

    compute_input: int
    queue: int
    compute_infer: int
    compute_output: int

    @property
    def total(self) -> int:
        """From the body's last byte to the answer's first."""
        return self.compute_input + self.queue + self.compute_infer + self.compute_output


class _Sum:
    """How often something happened, and its nanoseconds."""

    def __init__(self) -> None:
        self.count = self.ns = 0

    def add(self, ns: int, count: int = 1) -> None:
        self.count += count
        self.ns += ns

    def json(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


class Statistics:
    """Counts of one model since the application was made; threads share it."""

    def __init__(self) -> None:
        """Nothing was asked yet."""
        self._lock = threading.Lock()
        names = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        self._requests = {name: _Sum() for name in (*names, "cache_hit", "cache_miss")}
        self._batches: dict[int, _Sum] = {}
        self._last_ms = 0

    def answered(self, spent: Spent) -> None:
        """A request was answered."""
        with self._lock:
            self._requests["success"].add(spent.total)
            for name in ("queue", "compute_input", "compute_infer", "compute_output"):
                self._requests[name].add(getattr(spent, name))

    def failed(self, ns: int) -> None:
        """A request was refused, failed, or its client went away."""
        with self._lock:
            self._requests["fail"].add(ns)

    def executed(self, samples: int, seconds: float) -> None:
        """Samples were computed together."""
        with self._lock:
            self._batches.setdefault(samples, _Sum()).add(round(seconds * 1e9))
            self._last_ms = time.time_ns() // 1_000_000

    def json(self, name: str) -> dict[str, Any]:
        """As Triton shows a model."""
        nothing = _Sum().json()
        with self._lock:
            batches = sorted(self._batches.items())
            return {
                "name": name,
                "version": VERSION,
                "last_inference": self._last_ms,
                "inference_count": sum(size * found.count for size, found in batches),
                "execution_count": sum(found.count for _, found in batches),
                "inference_stats": {key: found.json() for key, found in self._requests.items()},
                "batch_stats": [
                    {
                        "batch_size": size,
                        "compute_input": nothing,
                        "compute_infer": found.json(),
                        "compute_output": nothing,
                    }
                    for size, found in batches
                ],
                "memory_usage": [],
            }


class Stopwatch:
    """Times of one request: each lap ends a part of it."""

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        """Start."""
        self._clock = clock
        self._began = self._last = clock()

    def lap(self) -> int:
        """Nanoseconds since the last lap."""
        before, self._last = self._last, self._clock()
        return self._last - before

    def total(self) -> int:
        """Nanoseconds since the start."""
        return self._clock() - self._began
