"""In Ray's HTTP proxy: a request whose replica was lost before it answered is asked of another one, within its time.

Ray calls `middlewares` in each of its proxies where the environment variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH
says so; `ray_serve.py` sets it. Requests change nothing on the server, so one may be asked twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import dataclass, field

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TRIES = 3
MOST_BYTES = 8 * 2**20
"""Of a body that is kept to be sent again."""

WAIT_SECONDS = 0.5
"""Before it is sent again: Ray needs a moment to see that the replica is gone."""

LIMIT = "DQ_SERVE_TIME_LIMIT"
"""Environment variable: seconds that a request may take, whoever answers it."""


def middlewares() -> list[Middleware]:
    """What Ray puts in front of its proxy."""
    return [Middleware(AskAgain, limit_s=float(os.environ.get(LIMIT, "300")))]


@dataclass(kw_only=True)
class _Kept:
    """A request's body as far as it came, given out again from its beginning."""

    receive: Receive
    messages: list[Message] = field(default_factory=list)
    given: int = 0
    bytes: int = 0
    gone: bool = False

    async def __call__(self) -> Message:
        if self.given < len(self.messages):
            message = self.messages[self.given]
        else:
            message = await self.receive()
            self.gone = self.gone or message["type"] == "http.disconnect"
            self.bytes += len(message.get("body", b""))
            if self.bytes <= MOST_BYTES and not self.gone:
                self.messages.append(message)
        self.given += 1
        return message

    def again(self) -> bool:
        """From the beginning; whether that can be."""
        self.given = 0
        return self.bytes <= MOST_BYTES and not self.gone


class AskAgain:
    """Ray's proxy gives no answer to a request whose replica is lost; this one asks again, and then says 503."""

    def __init__(self, app: ASGIApp, limit_s: float) -> None:
        """Take over a proxy's application.

        Args:
            app: that is asked.
            limit_s: seconds that a request may take.
        """
        self.app, self.limit_s = app, limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, kept, begun = time.monotonic(), _Kept(receive=receive), False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        for number in range(TRIES):
            try:
                if number == 0:  # the replica's own limit holds
                    await self.app(dict(scope), kept, watched)
                else:
                    left = self.limit_s - (time.monotonic() - began)
                    await asyncio.wait_for(self.app(dict(scope), kept, watched), max(0.0, left))
            except TimeoutError:
                if not begun:
                    await _say(send, 504, f"the request was not done within {self.limit_s:g} s", "timeout_error")
                return
            if begun or kept.gone:
                return
            if not kept.again() or time.monotonic() - began + WAIT_SECONDS > self.limit_s:
                break
            await asyncio.sleep(WAIT_SECONDS)
        await _say(send, 503, "the replica that had the request was lost; ask again", "overloaded_error")


async def _say(send: Send, status: int, message: str, kind: str) -> None:
    """An error as OpenAI's API says it."""
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": "replica_lost"}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
