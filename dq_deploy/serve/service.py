"""The server without its ports: it takes requests, has their pictures drawn, and says how they stand."""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dq_deploy.engines.base import Runner
from dq_deploy.errors import DqError, explained
from dq_deploy.models.pipeline import PipelineCall
from dq_deploy.numerics.arrays import Array
from dq_deploy.serve import Limits
from dq_deploy.serve.admission import Admission
from dq_deploy.serve.card import ModelCard
from dq_deploy.serve.orders import Denoised, Event, Kind, Order, PictureFormat, Reason, Status, Terms, reason_for
from dq_deploy.serve.painting import Painter
from dq_deploy.serve.steps import SharedEngine, StepScheduler
from dq_deploy.serve.telemetry.metrics import Metrics
from dq_deploy.serve.turn import Turn

_LOGGER = logging.getLogger(__name__)

REAP_SECONDS = 0.05
"""How often requests whose time is up are looked for."""


class StoppingError(DqError):
    """The server stops and takes no more requests."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A request as the list of requests shows it.

    Attributes:
        order: the request.
        position: pictures that stand before its own; None where none of its pictures waits.
    """

    order: Order
    position: int | None


class Service:
    """Draws pictures for many clients on one engine.

    Threads: one runs each engine, one ends requests whose time is up, and one for each picture that is being drawn.

    Attributes:
        card: what is served.
        engine: the runner that denoises.
        limits: what it holds at once.
        metrics: counts and times.
        watchers: called with each request that ends, by the thread that ends it.
    """

    def __init__(
        self,
        make_painter: Callable[[SharedEngine, Turn], Painter],
        engines: Sequence[Runner],
        card: ModelCard,
        limits: Limits,
    ) -> None:
        """Start the threads.

        Args:
            make_painter: makes what draws, around the shared engine.
            engines: of the same file, each run by a thread of its own; stay the caller's to close, after this.
            card: what is served.
            limits: what is held at once.
        """
        self.card, self.engine, self.limits = card, engines[0], limits
        self.watchers: list[Callable[[Order], None]] = []
        self.metrics = Metrics(
            waiting=lambda: self._count(Status.WAITING),
            running=lambda: self._count(Status.RUNNING),
            pictures_running=lambda: self._admission.drawn,
        )
        self._turn = Turn()
        self._scheduler = StepScheduler(
            engines, self._turn, max_rows=limits.max_batch, observe=self.metrics.engine_call
        )
        self._shared = SharedEngine(self._scheduler)
        self.painter = make_painter(self._shared, self._turn)
        self._admission = Admission(places=limits.places, most=limits.most, capacity=limits.queue)
        self._orders: dict[str, Order] = {}
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._changed = threading.Condition(self._lock)
        self._draining = self._closed = False
        self._finished: deque[float] = deque(maxlen=32)
        self._threads: list[threading.Thread] = []
        self._reaper = threading.Thread(target=self._reap, name="reaper", daemon=True)
        self._reaper.start()

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return not self._draining

    def submit(
        self,
        call: PipelineCall,
        terms: Terms,
        *,
        listener: Callable[[Event], None],
        kind: Kind = Kind.GENERATION,
        file: PictureFormat | None = None,
    ) -> Order:
        """Take a request for pictures.

        Args:
            call: of the pipeline, with its number of pictures and its seed.
            terms: how it is served.
            listener: hears its events, from other threads.
            kind: what is asked for.
            file: of the pictures.

        Raises:
            QueueFullError: too many pictures wait.
            StoppingError: the server stops.
            DqError: the pipeline does not take what is asked.
        """
        self.painter.check(call)
        order = Order(id=new_id(), kind=kind, call=call, terms=terms, format=file or PictureFormat(), listener=listener)
        self._accept(order)
        return order

    def denoise(self, feeds: Mapping[str, Array], terms: Terms, *, listener: Callable[[Event], None]) -> Order:
        """Take a request for one call of the denoiser.

        Args:
            feeds: its inputs by name, as `engine.inputs` says.
            terms: how it is served.
            listener: hears a `Denoised` or a `Failure`.

        Raises:
            InputError: the inputs are not what the engine takes.
            QueueFullError: too many requests wait.
            StoppingError: the server stops.
        """
        checked = self.engine.checked_feeds(feeds)
        order = Order(id=new_id(), kind=Kind.DENOISE, call=None, terms=terms, feeds=checked, listener=listener)
        self._accept(order)
        return order

    def _accept(self, order: Order) -> None:
        order.on_end.append(self._ended)
        with self._lock:
            if self._draining:
                raise StoppingError("the server stops and takes no more requests; ask another one, or again later")
            self._admission.add(order)
            self._orders[order.id] = order
            self._begin_threads()
            self._work.notify(order.count)

    def cancel(self, request_id: str) -> bool:
        """End a request; within one step its pictures are given up. False where there is none of that id."""
        with self._lock:
            order = self._orders.get(request_id)
        return order is not None and order.fail(Reason.CANCELLED, "the request was cancelled")

    def standings(self) -> list[Standing]:
        """The requests that are not over, those that wait in the order in which they would begin now."""
        with self._lock:
            positions = {order.id: before for order, before in self._admission.positions()}
            orders = list(self._orders.values())
        found = [Standing(order=order, position=positions.get(order.id)) for order in orders if not order.ended]
        return sorted(found, key=lambda s: -1 if s.position is None else s.position)

    def retry_after(self) -> int:
        """Seconds until it is worth asking again: until half of the pictures that wait have begun, 1 to 60."""
        with self._lock:
            waiting, times = self._admission.pictures_waiting, list(self._finished)
        if len(times) < 2:
            return 1
        each = (times[-1] - times[0]) / (len(times) - 1)
        return int(min(60, max(1, math.ceil(waiting * each / 2))))

    def stop_taking(self) -> None:
        """From now on requests are refused; those that are there go on."""
        with self._lock:
            self._draining = True

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until no request is there; whether that was so within the seconds."""
        with self._lock:
            return self._changed.wait_for(lambda: not self._orders, max(0.0, seconds))

    def end_all(self) -> None:
        """End the requests that are there."""
        with self._lock:
            left = list(self._orders.values())
        for order in left:
            order.fail(Reason.STOPPING, "the server stops")

    def close(self) -> None:
        """End all threads; requests that are there are ended first."""
        self.stop_taking()
        self.end_all()
        with self._lock:
            self._closed = True
            self._changed.notify_all()
            self._work.notify_all()
        self._scheduler.close()
        for thread in [self._reaper, *self._threads]:
            thread.join()

    def _begin_threads(self) -> None:
        """A thread for each picture that may be drawn, begun when the first such picture comes."""
        wanted = min(self._admission.drawn + self._admission.pictures_waiting, self.limits.most)
        while len(self._threads) < wanted:
            thread = threading.Thread(target=self._draw, name=f"picture-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _draw(self) -> None:
        self.painter.begin_thread()
        while True:
            with self._lock:
                found = self._admission.next()
                while found is None and not self._closed:
                    self._work.wait()
                    found = self._admission.next()
                if found is None:
                    return
            order, index = found
            if order.start():
                self.metrics.begins(order)
            with self._scheduler.picture():
                self._serve(order, index)
            with self._lock:
                self._admission.over(order)
                self._finished.append(time.monotonic())
                self._work.notify()

    def _serve(self, order: Order, index: int) -> None:
        try:
            order.check_going_on()
            if order.feeds is None:
                order.tell(self.painter.paint(order, index))
            else:
                self._shared.serving(order)
                with self._turn:
                    outputs = self._shared.run(order.feeds)
                order.tell(Denoised(outputs=outputs))
        except Exception as error:
            if order.ended:
                return
            message, code = explained(error)
            if code == 1:
                _LOGGER.exception("request %s failed", order.id)
            order.fail(reason_for(error), message)

    def _ended(self, order: Order) -> None:
        self._scheduler.forget(order)
        with self._lock:
            self._admission.remove(order)
            self._orders.pop(order.id, None)
            self._changed.notify_all()
        self.metrics.ended(order)
        for watcher in self.watchers:
            watcher(order)

    def _count(self, status: Status) -> int:
        with self._lock:
            return sum(order.status is status for order in self._orders.values())

    def _reap(self) -> None:
        while True:
            with self._lock:
                if self._changed.wait_for(lambda: self._closed, REAP_SECONDS):
                    return
                late = [o for o in self._orders.values() if time.monotonic() > o.deadline]
            for order in late:
                order.fail(Reason.TIME, f"the request was not done within {order.terms.time_limit_s:g} s")


def new_id() -> str:
    """An id that no other request has."""
    return f"req-{secrets.token_hex(12)}"
