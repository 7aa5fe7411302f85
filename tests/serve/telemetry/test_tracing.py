"""Each request becomes a trace: its wait and its work inside, part of its client's trace, nothing of its prompt."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from dq_deploy.models.pipeline import PipelineCall
from dq_deploy.serve.orders import Terms
from dq_deploy.serve.telemetry.tracing import traces_over_http
from tests.serve.asking import ask

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector(BaseHTTPRequestHandler):
    """Takes traces as a collector of OpenTelemetry does."""

    bodies: list[bytes]

    def do_POST(self):
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def collector():
    kind = type("Bound", (Collector,), {"bodies": []})
    server = HTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", kind.bodies
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_request_is_traced_to_its_end(label_service, collector):
    endpoint, bodies = collector
    traces = traces_over_http(endpoint, model="digits")
    label_service.watchers.append(traces.ended)
    parent = f"00-{TRACE}-b7ad6b7169203331-01"
    ask(label_service, PipelineCall(labels=(1,), steps=4, count=2), Terms(trace_parent=parent)).wait()
    late = ask(label_service, PipelineCall(labels=(1,), steps=900), Terms(time_limit_s=0.1)).wait()
    label_service.watchers.remove(traces.ended)
    traces.close()
    found = ExportTraceServiceRequest()
    for body in bodies:
        found.MergeFromString(body)
    resource = {a.key: a.value.string_value for a in found.resource_spans[0].resource.attributes}
    assert (resource["service.name"], resource["dq.model"]) == ("dq-serve", "digits")
    spans = [s for r in found.resource_spans for scope in r.scope_spans for s in scope.spans]
    of_client = {span.name: span for span in spans if span.trace_id.hex() == TRACE}
    assert set(of_client) == {"dq.generation", "dq.queue", "dq.draw"}
    whole, draw = of_client["dq.generation"], of_client["dq.draw"]
    assert whole.parent_span_id.hex() == "b7ad6b7169203331"
    assert draw.parent_span_id == whole.span_id
    assert whole.start_time_unix_nano <= draw.start_time_unix_nano < draw.end_time_unix_nano
    values = {a.key: a.value for a in whole.attributes}
    assert (values["dq.pictures_done"].int_value, values["dq.status"].string_value) == (2, "done")
    (failed,) = [s for s in spans if s.status.code == 2]
    assert {a.key: a.value.string_value for a in failed.attributes}["dq.request_id"] == late.order.id
    assert failed.status.message == "time"
