"""A request's events, from the threads that draw it to the coroutine that answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence

from fastapi import Request

from dq_deploy.serve.orders import Denoised, Event, Failure, Order, Picture, StepDone
from dq_deploy.serve.service import Service
from dq_deploy.serve.web.errors import ApiError, error_of_failure

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


async def until_done(
    request: Request, service: Service, orders: Sequence[Order], channel: Channel
) -> list[Picture | Denoised]:
    """All that was asked for, in the order in which it was done; what is left is cancelled where the client goes away.

    Args:
        request: of HTTP, whose body was read.
        service: of the orders.
        orders: that the channel hears of.
        channel: their listener.

    Raises:
        ApiError: one of them failed, or the client went away.
    """
    gone = asyncio.create_task(_gone(request))
    found: list[Picture | Denoised] = []
    following: asyncio.Task[Event] | None = None
    try:
        while len(found) < sum(order.count for order in orders):
            following = asyncio.create_task(channel.next())
            await asyncio.wait({gone, following}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                raise ApiError(499, "the client went away", code="cancelled")
            event = following.result()
            if isinstance(event, Failure):
                raise error_of_failure(event)
            if isinstance(event, (Picture, Denoised)):
                found.append(event)
    finally:
        gone.cancel()
        if following is not None:
            following.cancel()
        for order in orders:
            service.cancel(order.id)  # nothing, where it is done
    return found


async def _gone(request: Request) -> None:
    """Wait until the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
