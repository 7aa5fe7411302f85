"""The metrics alone on a port of their own."""

from __future__ import annotations

import socket
from http.client import HTTPConnection

import pytest

from dq_deploy.errors import OptionError
from dq_deploy.serve.telemetry.metrics import Metrics, metrics_on


@pytest.fixture
def metrics():
    return Metrics(waiting=lambda: 3, running=lambda: 2, pictures_running=lambda: 4)


def test_the_gauges_are_read_there_and_the_port_is_free_afterwards(metrics):
    with metrics_on("127.0.0.1", 0) as (port, registry):
        registry.register(metrics.registry)
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
    assert {"dq_requests_waiting 3.0", "dq_requests_running 2.0", "dq_pictures_running 4.0"} <= set(lines)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_port_that_is_taken_is_refused():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OptionError, match=r"cannot listen on .* give another `metrics_port`"),
        metrics_on("127.0.0.1", taken.getsockname()[1]),
    ):
        pass
