"""A service on a real port, in a thread of this process."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

import uvicorn

from dq_deploy.serve.service import Service
from dq_deploy.serve.web.access import Access
from dq_deploy.serve.web.app import create_app
from dq_deploy.serve.web.port import Port, bound_socket
from dq_deploy.serve.web.running import protocol


@contextmanager
def live(service: Service, access: Access | None = None, *, send_buffer: int | None = None) -> Iterator[int]:
    """Yields the port; the service stays open. A small buffer makes who does not read felt at once."""
    with bound_socket(Port(port=0)) as listener:
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        config = uvicorn.Config(
            create_app(service, access), http=protocol(1.0), ws="none", lifespan="off", log_config=None
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


def send(
    port: int, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Mapping[str, str], Any]:
    """Status, headers and the answer, as JSON where it is."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, data, dict(headers or {}))
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    found = dict(response.getheaders())
    is_json = found.get("content-type", "").startswith("application/json")
    return response.status, found, json.loads(answer) if is_json else answer


def connected(port: int) -> socket.socket:
    """A plain connection."""
    return socket.create_connection(("127.0.0.1", port), timeout=30)
