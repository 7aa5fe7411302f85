"""What a client is told where its request is not answered: a status, and one reason in the form its API has."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse
from starlette.responses import Response

from dq_deploy.errors import DqError
from dq_deploy.serve.admission import QueueFullError
from dq_deploy.serve.orders import Failure, Reason
from dq_deploy.serve.service import StoppingError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    499: "cancelled_error",
    503: "overloaded_error",
    504: "timeout_error",
}

STATUS_OF = {
    Reason.ASKED: 400,
    Reason.TIME: 504,
    Reason.CANCELLED: 499,
    Reason.STOPPING: 503,
    Reason.ENGINE: 500,
}
"""HTTP status of a request that failed; 499 is what proxies log where a client went away."""

LONGEST_MESSAGE = 1000


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        message: one line.
        param: name of the parameter that is to blame, or None.
        code: a word for programs, or None.
        retry_after: seconds until it is worth asking again, or None.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after
        line = " ".join(message.split()).encode(errors="backslashreplace").decode()
        self.message = line if len(line) <= LONGEST_MESSAGE else f"{line[: LONGEST_MESSAGE - 3]}..."

    def body(self, path: str) -> dict[str, Any]:
        """As OpenAI's API says it, or KServe's on its paths."""
        if path == "/v2" or path.startswith("/v2/"):
            return {"error": self.message}
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, "server_error"),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self, path: str) -> Response:
        """As an answer to what was asked at a path."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(path), self.status, headers)


def error_of_failure(failure: Failure) -> ApiError:
    """What the client of a failed request is told."""
    return ApiError(STATUS_OF[failure.reason], failure.message, code=failure.reason.value)


def error_of_refusal(error: DqError, retry_after: int) -> ApiError:
    """What a client is told whose request was not taken."""
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", retry_after=retry_after)
    if isinstance(error, StoppingError):
        return ApiError(503, str(error), code="stopping", retry_after=retry_after)
    return ApiError(400, str(error).replace("`", ""))
