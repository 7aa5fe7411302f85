"""Who may ask, and how much: tokens, sizes of bodies, the time a body may take, and a log line for each request."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dq_deploy.serve.orders import Reason
from dq_deploy.serve.web.errors import ApiError

_LOGGER = logging.getLogger("dq_deploy.serve.access")

_OPEN = ("/", "/v2/health/live", "/v2/health/ready")
"""What needs no token: the page itself, which asks for one, and whether the server lives."""

_FORMS = "/v1/images/edits"
"""Where a body may be a form with pictures."""

_PACKED = "/v2/models/"
"""Where a body may hold binary tensors, and may be compressed; what is asked there unpacks it."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may ask, and how much.

    Attributes:
        tokens: one of which every request must bring; empty where everybody may ask.
        most_json: bytes of a JSON body.
        most_upload: bytes of a form with pictures, or of binary tensors.
        body_seconds: that a body may take to come.
        send_seconds: that a client may take to read what was sent before more is sent.
        log_prompts: whether log lines hold prompts.
        cross_site: whether pages of other sites may ask, which browsers say of their requests; behind tokens they may.
    """

    tokens: tuple[str, ...] = ()
    most_json: int = 2**20
    most_upload: int = 64 * 2**20
    body_seconds: float = 30.0
    send_seconds: float = 60.0
    log_prompts: bool = False
    cross_site: bool = False


def client_of(request: Request) -> str:
    """Whose a request is: of its token where there are tokens, else of the address it comes from."""
    token: str | None = getattr(request.state, "client", None)
    return token or (request.client.host if request.client is not None else "")


class Guard:
    """In front of the application: lets in who may ask, and counts what a body holds while it comes."""

    def __init__(self, app: ASGIApp, access: Access, most_form: Callable[[], int]) -> None:
        """Take over an application.

        Args:
            app: that is guarded.
            access: who may ask, and how much.
            most_form: says how many bytes a form may have.
        """
        self.app, self.access, self._most_form = app, access, most_form
        self._digests = [hashlib.sha256(token.encode()).digest() for token in access.tokens]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        request_id = f"http-{secrets.token_hex(8)}"
        began, status = time.monotonic(), 0
        sent = _Sent(send, request_id, self.access.send_seconds)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            state["client"] = self._client(scope["path"], headers)
            self._check_site(scope["path"], headers)
            _check_encoding(scope["path"], headers)
            limit = self._limit(scope["path"], headers)
            _check_length(headers, limit)
            await self.app(scope, _Body(receive, limit, self.access.body_seconds), sent)
        except ApiError as error:
            await error.response(scope["path"])(scope, receive, sent)
        except (TimeoutError, ClientDisconnect):
            pass  # the client does not read, or went away before its body was whole: there is nobody to tell
        finally:
            status = sent.status
            order = state.get("order")
            if order is not None:  # whatever ended the answer; nothing, where the request is done
                order.fail(Reason.CANCELLED, "the client went away")
            self._log(scope, state, status, time.monotonic() - began)

    def _check_site(self, path: str, headers: dict[str, str]) -> None:
        """Refuse what another site's page asks in the name of who looks at it.

        Raises:
            ApiError: it does.
        """
        allowed = self.access.cross_site or self._digests or path in _OPEN or path.startswith("/page/")
        if headers.get("sec-fetch-site") == "cross-site" and not allowed:
            raise ApiError(403, "a page of another site asks; open this server's own page", code="cross_site")

    def _limit(self, path: str, headers: dict[str, str]) -> int:
        """Bytes that a body may have."""
        if path.startswith(_PACKED):
            return self.access.most_upload
        if path == _FORMS and headers.get("content-type", "").lower().startswith("multipart/form-data"):
            return min(self.access.most_upload, self._most_form())
        return self.access.most_json

    def _client(self, path: str, headers: dict[str, str]) -> str | None:
        """Which token a request brings, in a form that tells nothing of it.

        Raises:
            ApiError: it brings none of them.
        """
        if not self._digests or path in _OPEN or path.startswith("/page/"):
            return None
        kind, _, token = headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        if kind.lower() != "bearer" or not any(found):
            raise ApiError(401, "the token is missing or wrong; send Authorization: Bearer TOKEN", code="invalid_token")
        return f"token-{found.index(True)}"

    def _log(self, scope: Scope, state: dict[str, Any], status: int, seconds: float) -> None:
        order = state.get("order")
        line: dict[str, Any] = {
            "event": "request",
            "method": scope["method"],
            "path": scope["path"],
            "status": status or 499,
            "seconds": round(seconds, 4),
        }
        if order is not None:
            line |= {"id": order.id, "kind": order.kind.value, "n": order.count, "became": order.status.value}
            if self.access.log_prompts and order.call is not None and order.call.prompts:
                line["prompt"] = order.call.prompts[0]
        _LOGGER.info(json.dumps(line))


class _Body:
    """A request's body as it comes, refused where it is too large or too slow."""

    def __init__(self, receive: Receive, limit: int, seconds: float) -> None:
        self._receive, self._left, self._seconds = receive, limit, seconds
        self._end: float | None = None
        self._limit, self._done = limit, False

    async def __call__(self) -> Message:
        if self._done:
            return await self._receive()
        if self._end is None:  # from the first look on: it may have waited for its turn
            self._end = time.monotonic() + self._seconds
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._end - time.monotonic()))
        except TimeoutError as error:
            raise ApiError(408, "the body did not come in time", code="timeout") from error
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise _too_large(self._limit)
        self._done = not message.get("more_body", False)
        return message


class _Sent:
    """What is sent, with the request's id in a header; given up where the client does not read."""

    def __init__(self, send: Send, request_id: str, seconds: float) -> None:
        self._send, self._id, self._seconds = send, request_id, seconds
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers: Sequence[tuple[bytes, bytes]] = message.get("headers", [])
            if not any(name.lower() == b"x-request-id" for name, _ in headers):
                message = {**message, "headers": [*headers, (b"x-request-id", self._id.encode())]}
        await asyncio.wait_for(self._send(message), self._seconds)


def _check_encoding(path: str, headers: dict[str, str]) -> None:
    """Refuse a compressed body where nobody unpacks it.

    Raises:
        ApiError: it is compressed, or said to be.
    """
    encoding = headers.get("content-encoding", "")
    if not path.startswith(_PACKED) and encoding.strip().lower() not in ("", "identity"):
        raise ApiError(415, f"Content-Encoding is {encoding[:60]}, expected none; send the body as it is")


def _check_length(headers: dict[str, str], limit: int) -> None:
    length = headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit} bytes, which is the most", code="too_large")
