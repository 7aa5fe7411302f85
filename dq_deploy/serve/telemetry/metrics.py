"""What the server counts and times, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from dq_deploy.errors import OptionError

if TYPE_CHECKING:
    from dq_deploy.serve.orders import Order
    from dq_deploy.serve.steps import EngineCall

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class Metrics:
    """Counts and times of one server; threads share it.

    Attributes:
        registry: of Prometheus.
        listeners: told of each call of the engine, by its thread.
    """

    def __init__(
        self, *, waiting: Callable[[], int], running: Callable[[], int], pictures_running: Callable[[], int]
    ) -> None:
        """Nothing is counted yet.

        Args:
            waiting: says how many requests wait now.
            running: likewise, of which a picture has begun.
            pictures_running: likewise, pictures that are being drawn.
        """
        self.listeners: list[Callable[[EngineCall], None]] = []
        self.registry = CollectorRegistry()
        self._gauge("dq_requests_waiting", "Requests none of whose pictures has begun.", waiting)
        self._gauge("dq_requests_running", "Requests with a picture that has begun.", running)
        self._gauge("dq_pictures_running", "Pictures that are being drawn.", pictures_running)
        self._requests = self._counter("dq_requests", "Requests that ended, by what became of them.", "kind", "status")
        self._pictures = self._counter("dq_pictures", "Pictures that were finished.")
        self._refused = self._counter("dq_refused", "Requests that were not taken, by HTTP status.", "status")
        self._call = self._histogram("dq_engine_call_seconds", "One call of the engine.", _SECONDS)
        self._rows = self._histogram("dq_engine_call_rows", "Samples in one call of the engine.", _ROWS)
        self._step_wait = self._histogram("dq_step_wait_seconds", "A picture's step, from ready to begun.", _SECONDS)
        self._queue = self._histogram("dq_queue_seconds", "A request, from accepted to its first picture.", _SECONDS)
        self._request = self._histogram("dq_request_seconds", "A request, from accepted to answered.", _SECONDS)

    def _gauge(self, name: str, text: str, value: Callable[[], int]) -> None:
        Gauge(name, text, registry=self.registry).set_function(value)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, registry=self.registry, buckets=buckets)

    def begins(self, order: Order) -> None:
        """The first picture of a request begins."""
        if order.started_at is not None:
            self._queue.observe(order.started_at - order.accepted_at)

    def ended(self, order: Order) -> None:
        """A request ended."""
        self._requests.labels(order.kind.value, order.status.value).inc()
        self._pictures.inc(len(order.pictures))
        if order.ended_at is not None:
            self._request.observe(order.ended_at - order.accepted_at)

    def refused(self, status: int) -> None:
        """A request was not taken."""
        self._refused.labels(str(status)).inc()

    def engine_call(self, call: EngineCall) -> None:
        """The engine was called."""
        self._call.observe(call.seconds)
        self._rows.observe(call.rows)
        for seconds in call.waited_s:
            self._step_wait.observe(seconds)
        for listener in self.listeners:
            listener(call)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)


@contextmanager
def metrics_on(host: str, port: int) -> Iterator[tuple[int, CollectorRegistry]]:
    """Metrics alone on a port of their own, over HTTP and to everybody who reaches it; at first there are none.

    Args:
        host: name or address to listen on.
        port: 0 for any that is free.

    Yields:
        The port, and where a server's `Metrics.registry` is registered as soon as there is one.

    Raises:
        OptionError: it cannot listen there.
    """
    try:
        registry = CollectorRegistry()
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise OptionError(f"cannot listen on {host} port {port} ({error}); give another `metrics_port`") from error
    try:
        yield int(server.server_port), registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
