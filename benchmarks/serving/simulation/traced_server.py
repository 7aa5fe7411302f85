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

REQUESTS: list[tuple[float, float]] = []
"""(when it came, seconds from then until it was answered) of each request, its check included."""

BEATS: list[tuple[float, float, float]] = []
"""(when, seconds, `BEAT_SECONDS`) of sleeps that took much longer: the machine stood still, or others had it."""

BEAT_SECONDS, LATE_SECONDS = 0.01, 0.03


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

    def give_back(self) -> None:
        """By the scheduler of steps."""
        steps = getattr(self._of_thread, "steps", 0)
        self._of_thread.steps = steps + 1
        self._note("between" if steps else "first")
        super().give_back()

    def grant(self, wake: threading.Event) -> None:
        """As the turn does."""
        if not self._held:
            self._began = time.monotonic()
        super().grant(wake)

    def _note(self, kind: str) -> None:
        """The end of a hold, before the next one begins: behind it the next thread may already be noting its own."""
        now = time.monotonic()
        HOLDS.append((now, kind, now - self._began))
        self._began = now


def watch() -> None:
    """Put the tracing in place."""
    import dq_deploy.serve.service as service

    service.Turn = TracedTurn  # type: ignore[misc]
    own_run, own_ended, own_picture = StepScheduler._run, Metrics.ended, painting.picture_of
    own_submit, own_accept = service.Service.submit, service.Service._accept
    here, came = threading.local(), {}

    def run(self: StepScheduler, engine: Any, steps: Sequence[Any]) -> None:
        began = time.monotonic()
        own_run(self, engine, steps)
        rows = sum(step.rows for step in steps)
        CALLS.append((began, str(steps[0].key[0]), rows, len(steps), self._last_s))
        AFTER.append((began, time.monotonic() - began - self._last_s))

    def ended(self: Metrics, order: Order) -> None:
        own_ended(self, order)
        if order.ended_at is not None:
            began = came.pop(order.id, order.accepted_at)
            REQUESTS.append((began, order.ended_at - began))

    def picture_of(*args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        found = own_picture(*args, **kwargs)
        FILES.append((began, time.monotonic() - began))
        return found

    def submit(self: service.Service, *args: Any, **kwargs: Any) -> Order:
        here.came = time.monotonic()
        return own_submit(self, *args, **kwargs)

    def accept(self: service.Service, order: Order) -> None:
        came[order.id] = getattr(here, "came", order.accepted_at)
        own_accept(self, order)

    service.Service.submit, service.Service._accept = submit, accept  # type: ignore[method-assign]
    StepScheduler._run, Metrics.ended, painting.picture_of = run, ended, picture_of  # type: ignore[method-assign]
    threading.Thread(target=beat, daemon=True).start()


def beat() -> None:
    """Note when this process did not run, also where nobody asks anything of it."""
    while True:
        began = time.monotonic()
        time.sleep(BEAT_SECONDS)
        took = time.monotonic() - began
        if took > LATE_SECONDS:
            BEATS.append((began, took, BEAT_SECONDS))


def main() -> None:
    """Serve, and write the trace."""
    from dq_deploy.cli.serve import main as serve

    out = Path(sys.argv.pop(1))
    watch()
    try:
        serve()
    finally:
        found = {"calls": CALLS, "after": AFTER, "holds": HOLDS, "files": FILES, "requests": REQUESTS, "beats": BEATS}
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
