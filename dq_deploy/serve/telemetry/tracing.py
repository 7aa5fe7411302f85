"""A trace of each request for OpenTelemetry: how long it waited and was drawn, and nothing of what it asks for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from dq_deploy.serve.orders import Order, Status
from dq_deploy.version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context


class Traces:
    """Writes a span for each request when it ends, with its time in the queue and at work as spans inside.

    A request with a `traceparent` header of the W3C becomes part of its client's trace.
    """

    def __init__(self, exporter: SpanExporter, *, model: str) -> None:
        """Begin to send.

        Args:
            exporter: where spans go.
            model: name of the model that is served.
        """
        resource = Resource.create({"service.name": "dq-serve", "service.version": __version__, "dq.model": model})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("dq_deploy.serve", __version__)

    def ended(self, order: Order) -> None:
        """A request is over; called by the thread that ended it."""
        end = order.ended_at or time.monotonic()
        failed = order.status is not Status.DONE
        whole = self._tracer.start_span(
            f"dq.{order.kind.value}",
            _client_of(order),
            kind=trace.SpanKind.SERVER,
            start_time=_wall_ns(order.accepted_at),
            attributes={
                "dq.request_id": order.id,
                "dq.pictures": order.count,
                "dq.pictures_done": len(order.pictures),
                "dq.steps": order.steps_done,
                "dq.priority": order.terms.priority,
                "dq.status": order.status.value,
            },
        )
        if failed:
            reason = "" if order.failure is None else order.failure.reason.value
            whole.set_status(trace.Status(trace.StatusCode.ERROR, reason))
        inside = trace.set_span_in_context(whole)
        began = order.started_at
        self._part("dq.queue", inside, order.accepted_at, end if began is None else began)
        if began is not None:
            self._part("dq.draw", inside, began, end)
        whole.end(_wall_ns(end))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def _part(self, name: str, inside: Context, start: float, end: float) -> None:
        self._tracer.start_span(name, inside, start_time=_wall_ns(start)).end(_wall_ns(end))


def _client_of(order: Order) -> Context:
    return TraceContextTextMapPropagator().extract({"traceparent": order.terms.trace_parent})


def _wall_ns(monotonic: float) -> int:
    """A time of the monotonic clock as nanoseconds since 1970."""
    return time.time_ns() - int((time.monotonic() - monotonic) * 1e9)


def traces_over_http(endpoint: str, *, model: str) -> Traces:
    """Traces sent by OTLP over HTTP.

    Args:
        endpoint: URL, as http://127.0.0.1:4318/v1/traces.
        model: name of the model that is served.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return Traces(OTLPSpanExporter(endpoint=endpoint), model=model)
