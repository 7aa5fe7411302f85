"""A request's events, from the threads that draw it to the coroutine that answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from dq_deploy.serve.orders import Event, StepDone

MOST_STEPS_BEHIND = 16
"""Events of steps that are kept for a client which reads slower than they come; earlier ones are left out."""


class Channel:
    """Events in order; made in the coroutine's loop, told by any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._some = asyncio.Event()

    def tell(self, event: Event) -> None:
        """Pass an event on; never blocks."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self._loop.call_soon_threadsafe(self._add, event)

    async def next(self) -> Event:
        """The next event."""
        while not self._events:
            self._some.clear()
            await self._some.wait()
        return self._events.popleft()

    def _add(self, event: Event) -> None:
        if isinstance(event, StepDone) and sum(isinstance(e, StepDone) for e in self._events) >= MOST_STEPS_BEHIND:
            earliest = next(i for i, e in enumerate(self._events) if isinstance(e, StepDone))
            del self._events[earliest]
        self._events.append(event)
        self._some.set()
