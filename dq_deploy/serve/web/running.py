"""The application on a port, by uvicorn: connections that say nothing are closed, and SIGTERM lets requests finish."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from dq_deploy.serve.service import Service
from dq_deploy.serve.web.port import Port

_LOGGER = logging.getLogger(__name__)

HEADER_SECONDS = 15.0
"""That a connection may take to send the head of a request, from its first byte; of the first one, from its opening."""

LARGEST_HEAD = 64 * 2**10
"""Bytes of the head of a request: its line and its headers."""

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class _Protocol(HttpToolsProtocol):
    """HTTP of one connection, closed where the head of a request is too slow or too large."""

    head_seconds = HEADER_SECONDS

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._in_head, self._head_bytes, self._field_bytes = True, 0, 0
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if not self._answering:
            self._expect_head()
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > LARGEST_HEAD and not self.transport.is_closing():
            self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._in_head:
            self._in_head, self._head_bytes, self._field_bytes = True, 0, 0
        self._expect_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._field_bytes += len(name) + len(value)
        if self._field_bytes > LARGEST_HEAD:
            raise ValueError("the head is too large")  # the parser stops, and `send_400_response` is called
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._forget_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        if max(self._head_bytes if self._in_head else 0, self._field_bytes) > LARGEST_HEAD:
            self.transport.write(_TOO_LARGE)
            self.transport.close()
            return
        super().send_400_response(msg)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        super().connection_lost(exc)

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self._give_up)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self._answering:  # the rest of the head is not read before that answer is out
            self._expect_head()
        elif not self.transport.is_closing():
            self.transport.close()


def protocol(head_seconds: float = HEADER_SECONDS) -> type[HttpToolsProtocol]:
    """Uvicorn's HTTP by httptools, that closes a connection where the head of a request takes longer."""
    return type("Protocol", (_Protocol,), {"head_seconds": head_seconds})


class _Server(uvicorn.Server):
    """Lets the requests that are there finish, and takes no more, before it closes its connections."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float) -> None:
        super().__init__(config)
        self._service, self._drain_seconds = service, drain_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        _LOGGER.info('{"event": "stopping"}')
        self._service.stop_taking()
        end = time.monotonic() + self._drain_seconds
        loop, idle = asyncio.get_running_loop(), False
        while not idle and not self.force_exit and time.monotonic() < end:
            idle = await loop.run_in_executor(None, self._service.wait_until_idle, 0.1)
        self._service.end_all()
        await super().shutdown(sockets)


def serve_on(app: FastAPI, service: Service, port: Port, listener: socket.socket) -> None:
    """Serve until the process is told to stop by SIGTERM, SIGINT, or SIGHUP where that is not ignored.

    Args:
        app: of `create_app`.
        service: of the application.
        port: where it listens, and what it does when it stops.
        listener: of `bound_socket`.
    """
    _allow_connections()
    gc.collect()
    gc.freeze()  # what is there stays: else each collection walks through torch's objects, a second of them
    config = uvicorn.Config(
        app,
        http=protocol(),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        ssl_certfile=None if port.certificate is None else str(port.certificate),
        ssl_keyfile=None if port.key is None else str(port.key),
    )
    config.load()
    server = _Server(config, service, port.drain_seconds)
    with _signals_end_only(server):
        server.run(sockets=[listener])


@contextmanager
def _signals_end_only(server: uvicorn.Server) -> Iterator[None]:
    """A signal ends the server, one that comes before it runs too; uvicorn raises it once more when it has ended."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup does
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, server.handle_exit) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _allow_connections() -> None:
    """As many open files as the system lets this process have: a connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
