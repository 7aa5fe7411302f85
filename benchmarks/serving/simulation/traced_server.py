"""`dq-serve` that writes down what takes how long: each call of the engine, and each hold of the turn.

    python -m benchmarks.serving.simulation.traced_server TRACE [options of dq-serve]

The trace is written when the server is told to stop.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dq_deploy.serve import painting
from dq_deploy.serve.orders import Order
from dq_deploy.serve.steps import StepScheduler
from dq_deploy.serve.telemetry.metrics import Metrics
from dq_deploy.serve.turn import Turn

CALLS: list[tuple[float, str, int, int, float]] = []
"""(when, shape, rows, pictures, seconds) of each call of the engine."""

AFTER: list[tuple[float, float]] = []
"""(when, seconds) from the end of each call until its thread has given out what came of it and counted it."""

HOLDS: list[tuple[float, str, float]] = []
"""(when, kind, seconds) of each hold of the turn: `check`, `first`, `between`, `last`."""

FILES: list[tuple[float, float]] = []
"""(when, seconds) of each picture's encoding."""

CHECKS: list[tuple[float, float]] = []
"""(when, seconds) of each check of a request before it waits, with its wait for the turn."""

REQUESTS: list[tuple[float, float]] = []
"""(when it was accepted, seconds from then until it was answered) of each request."""


class TracedTurn(Turn):
    """Notes how long each thread has the turn, and what for."""

    def __init__(self) -> None:
        super().__init__()
        self._of_thread = threading.local()
        self._began = 0.0

    def __enter__(self) -> None:
        self._of_thread.steps = 0
        super().__enter__()

    def __exit__(self, *error: object) -> None:
        steps = getattr(self._of_thread, "steps", 0)
        self._note("last" if steps else "check")
        super().give_back()
        self._began = time.monotonic()

    def give_back(self) -> None:
        """By the scheduler of steps."""
        steps = getattr(self._of_thread, "steps", 0)
        self._of_thread.steps = steps + 1
        self._note("between" if steps else "first")
        super().give_back()
        self._began = time.monotonic()

    def grant(self, wake: threading.Event) -> None:
        """As the turn does."""
        if not self._held:
            self._began = time.monotonic()
        super().grant(wake)

    def _note(self, kind: str) -> None:
        now = time.monotonic()
        HOLDS.append((now, kind, now - self._began))


def watch() -> None:
    """Put the tracing in place."""
    import dq_deploy.serve.service as service

    service.Turn = TracedTurn  # type: ignore[misc]
    own_run, own_ended, own_picture = StepScheduler._run, Metrics.ended, painting.picture_of
    own_check = painting.Painter.check

    def run(self: StepScheduler, engine: Any, steps: Sequence[Any]) -> None:
        began = time.monotonic()
        own_run(self, engine, steps)
        rows = sum(step.rows for step in steps)
        CALLS.append((began, str(steps[0].key[0]), rows, len(steps), self._last_s))
        AFTER.append((began, time.monotonic() - began - self._last_s))

    def ended(self: Metrics, order: Order) -> None:
        own_ended(self, order)
        if order.ended_at is not None:
            REQUESTS.append((order.accepted_at, order.ended_at - order.accepted_at))

    def picture_of(*args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        found = own_picture(*args, **kwargs)
        FILES.append((began, time.monotonic() - began))
        return found

    def check(self: painting.Painter, call: Any) -> None:
        began = time.monotonic()
        own_check(self, call)
        CHECKS.append((began, time.monotonic() - began))

    painting.Painter.check = check  # type: ignore[method-assign]
    StepScheduler._run, Metrics.ended, painting.picture_of = run, ended, picture_of  # type: ignore[method-assign]


def main() -> None:
    """Serve, and write the trace."""
    from dq_deploy.cli.serve import main as serve

    out = Path(sys.argv.pop(1))
    watch()
    try:
        serve()
    finally:
        found = {"calls": CALLS, "after": AFTER, "holds": HOLDS, "files": FILES, "checks": CHECKS, "requests": REQUESTS}
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
