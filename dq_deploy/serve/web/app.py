"""The whole server as one application of FastAPI."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from dq_deploy.errors import DqError
from dq_deploy.serve.kserve.router import kserve_router
from dq_deploy.serve.page import page_router
from dq_deploy.serve.service import Service
from dq_deploy.serve.telemetry.metrics import CONTENT_TYPE
from dq_deploy.serve.web.access import Access, Guard
from dq_deploy.serve.web.asked import most_form_bytes
from dq_deploy.serve.web.descriptions import ERRORS
from dq_deploy.serve.web.errors import ApiError, error_of_refusal
from dq_deploy.serve.web.images import images_router
from dq_deploy.serve.web.requests import requests_router
from dq_deploy.version import __version__

_LOGGER = logging.getLogger(__name__)


def create_app(service: Service, access: Access | None = None) -> FastAPI:
    """The application: `uvicorn.run(create_app(service))`.

    Args:
        service: stays the caller's to close, after the application.
        access: who may ask, and how much; by default everybody, with the usual limits.
    """
    access = access or Access()
    app = FastAPI(
        title="dq_deploy",
        version=__version__,
        description="Pictures by a quantized diffusion model that runs in integers.",
        docs_url=None,  # its page would load scripts from another host
        redoc_url=None,
        responses={status: answer for status, answer in ERRORS.items() if status in (401, 403, 404, 405, 413)},
    )
    app.state.service = service
    app.include_router(images_router(service))
    app.include_router(requests_router(service))
    app.include_router(page_router())
    app.include_router(kserve_router(service, most_bytes=access.most_upload))

    @app.get("/metrics", response_class=Response, operation_id="metrics", tags=["server"])
    def metrics() -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(DqError, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _unexpected)
    app.add_middleware(Guard, most_form=lambda: most_form_bytes(service.card), access=access)
    return app


def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response(request.url.path)


def _refused(request: Request, error: Exception) -> Response:
    """What a call of the pipeline does not take, and nobody before it refused."""
    assert isinstance(error, DqError)
    return error_of_refusal(error, 1).response(request.url.path)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: f"there is no {request.url.path[:100]}", 405: f"{request.method} is not allowed here"}
    found = ApiError(error.status_code, words.get(error.status_code, str(error.detail)))
    response = found.response(request.url.path)
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: Any = error.errors()[0]
    name = str(first["loc"][-1])
    return ApiError(400, f"{name}: {first['msg']}", param=name, code="invalid_value").response(request.url.path)


def _unexpected(request: Request, error: Exception) -> Response:
    _LOGGER.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed on this request; its log says where").response(request.url.path)
