"""The paths of KServe V2, with Triton's for configuration, statistics and the list of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from dq_deploy.errors import DqError
from dq_deploy.serve.kserve.answers import config_json, infer_response, metadata_json
from dq_deploy.serve.kserve.body import MOST_JSON, InferRequest, json_too_large, read_infer, unpacked
from dq_deploy.serve.kserve.denoiser import NAME as DENOISER
from dq_deploy.serve.kserve.descriptions import ERRORS, INDEX_BODY, INFER_BODY, INFER_HEADERS, NAME, VERSION_PARAMETER
from dq_deploy.serve.kserve.forms import wanted_outputs
from dq_deploy.serve.kserve.generate import NAME as GENERATE
from dq_deploy.serve.kserve.model import DenoiserModel, GenerateModel, Model
from dq_deploy.serve.kserve.statistics import VERSION, Spent, Stopwatch
from dq_deploy.serve.kserve.tensors import shown
from dq_deploy.serve.service import Service
from dq_deploy.serve.web.access import client_of
from dq_deploy.serve.web.asked import read_json_body
from dq_deploy.serve.web.channel import Channel, until_done
from dq_deploy.serve.web.errors import ApiError, error_of_refusal
from dq_deploy.version import __version__

SMALL = 2**16
"""Bytes of a body; larger and compressed ones are unpacked and read one after another, so that they hold up nobody."""

_HEADER = "inference-header-content-length"

EXTENSIONS = ("binary_tensor_data", "model_configuration", "parameters", "schedule_policy", "statistics")

_NOT_SERVED = {
    "/v2/systemsharedmemory/{rest:path}": "shared memory is not served here; send tensors in the body",
    "/v2/cudasharedmemory/{rest:path}": "shared memory is not served here; send tensors in the body",
    "/v2/trace/setting": "traces are not set here",
    "/v2/models/{name}/trace/setting": "traces are not set here",
    "/v2/logging": "the log is not set here",
    "/v2/repository/models/{name}/load": "models are not loaded here; the server serves the one it was started with",
    "/v2/repository/models/{name}/unload": "models are not unloaded here; stop the server",
}
"""Extensions of Triton's, with why they are not there."""


def kserve_router(service: Service, *, most_bytes: int = 64 * 2**20) -> APIRouter:
    """All paths under `/v2`.

    Args:
        service: that is asked.
        most_bytes: of a body, unpacked.
    """
    models = _Models(service)
    router = APIRouter(tags=["kserve"], responses=ERRORS)
    _add_server(router, models)
    for pattern, reason in _NOT_SERVED.items():
        router.add_api_route(pattern, _refusing(reason), methods=["GET", "POST"], include_in_schema=False)
    _add_models(router, models, _Infer(models, most_bytes))
    return router


class _Models:
    """The models by their names."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._denoiser, self._generate = DenoiserModel(service), GenerateModel(service)

    def __call__(self) -> dict[str, Model]:
        """The denoiser, and the pictures under their own name and the served model's."""
        found: dict[str, Model] = {DENOISER: self._denoiser}
        if self.service.card.draws:
            found[GENERATE] = self._generate
            found.setdefault(self.service.card.name, self._generate)
        return found

    def of(self, request: Request) -> tuple[str, Model]:
        """The model that a path names.

        Raises:
            ApiError: there is none, or not in that version.
        """
        name = request.path_params["name"]
        version = request.path_params.get("version", VERSION)
        models = self()
        if name not in models:
            raise ApiError(404, f"there is no model {shown(name)}, expected {', '.join(models)}")
        if version != VERSION:
            raise ApiError(404, f"{name} has no version {shown(version)}, expected {VERSION}")
        return name, models[name]


def _add_server(router: APIRouter, models: _Models) -> None:
    service = models.service

    @router.get("/v2", operation_id="kserve_server")
    def server() -> dict[str, Any]:
        """What the server is."""
        return {"name": "dq_deploy", "version": __version__, "extensions": list(EXTENSIONS)}

    @router.get("/v2/health/live", operation_id="kserve_live")
    async def live() -> dict[str, bool]:
        """Whether the server lives."""
        return {"live": True}

    @router.get("/v2/health/ready", operation_id="kserve_ready")
    async def ready() -> dict[str, bool]:
        """Whether requests are taken."""
        _check_ready(service)
        return {"ready": True}

    @router.get("/v2/models/stats", operation_id="kserve_all_statistics")
    def all_statistics() -> dict[str, Any]:
        """Counts and times of all models, each once."""
        own = {name: model for name, model in models().items() if name in (DENOISER, GENERATE)}
        return {"model_stats": [model.statistics.json(name) for name, model in own.items()]}

    @router.post(
        "/v2/repository/index",
        operation_id="kserve_index",
        openapi_extra={"requestBody": INDEX_BODY},
        response_class=JSONResponse,
    )
    async def index(request: Request) -> Response:
        """The models there are."""
        body = await request.body()
        asked = read_json_body(body) if body.strip() else {}
        for name, value in asked.items():
            if name != "ready" or not isinstance(value, bool):
                raise ApiError(400, f"the body has {shown(name)} {shown(value)}, expected ready true or false")
        if asked.get("ready") and not service.ready:
            return JSONResponse([])
        state = {"state": "READY", "reason": ""} if service.ready else {"state": "UNAVAILABLE", "reason": "it stops"}
        return JSONResponse([{"name": name, "version": VERSION, **state} for name in models()])


def _add_models(router: APIRouter, models: _Models, infer: _Infer) -> None:
    service = models.service

    def metadata(request: Request) -> dict[str, Any]:
        """What a model takes and gives."""
        name, model = models.of(request)
        return metadata_json(model.form, name)

    def model_ready(request: Request) -> dict[str, Any]:
        """Whether it takes requests."""
        name, _ = models.of(request)
        _check_ready(service)
        return {"name": name, "ready": True}

    def config(request: Request) -> dict[str, Any]:
        """Its configuration in Triton's form."""
        name, model = models.of(request)
        return config_json(model.form, name, service.card)

    def statistics(request: Request) -> dict[str, Any]:
        """Its counts and times in Triton's form."""
        name, model = models.of(request)
        return {"model_stats": [model.statistics.json(name)]}

    read: dict[str, Callable[[Request], dict[str, Any]]] = {
        "": metadata,
        "/ready": model_ready,
        "/config": config,
        "/stats": statistics,
    }
    for path, parameters in (
        ("/v2/models/{name}", [NAME]),
        ("/v2/models/{name}/versions/{version}", [NAME, VERSION_PARAMETER]),
    ):
        ending = "_version" if VERSION_PARAMETER in parameters else ""
        for part, function in read.items():
            router.add_api_route(
                path + part,
                function,
                methods=["GET"],
                operation_id=f"kserve_{function.__name__}{ending}",
                openapi_extra={"parameters": parameters},
            )
        router.add_api_route(
            f"{path}/infer",
            infer.answer,
            methods=["POST"],
            operation_id=f"kserve_infer{ending}",
            response_class=JSONResponse,
            openapi_extra={"parameters": [*parameters, *INFER_HEADERS], "requestBody": INFER_BODY},
        )


class _Infer:
    """Answers infer requests."""

    def __init__(self, models: _Models, most_bytes: int) -> None:
        self._models, self._most_bytes = models, most_bytes
        self._large = CapacityLimiter(1)
        self._service = models.service

    async def answer(self, request: Request) -> Response:
        """Ask a model: tensors in, tensors out."""
        name, model = self._models.of(request)
        most = self._most(request, model)
        length = request.headers.get("content-length", "0")
        _check_size(int(length) if length.isdigit() else 0, most)
        data = await request.body()
        _check_size(len(data), most)
        watch, done = Stopwatch(), False
        try:
            asked = await self._read(request, data, most)
            found = await self._answered(request, name, model, asked, watch)
            done = True
            return found
        finally:
            if not done:
                model.statistics.failed(watch.total())

    def _most(self, request: Request, model: Model) -> int:
        """Bytes that a body may have, unpacked."""
        if _HEADER not in request.headers:
            return MOST_JSON
        own = model.most_input_bytes
        return self._most_bytes if own is None else min(self._most_bytes, MOST_JSON + own)

    async def _read(self, request: Request, data: bytes, most: int) -> InferRequest:
        encoding, header_length = request.headers.get("content-encoding", ""), request.headers.get(_HEADER)

        def read() -> InferRequest:
            return read_infer(unpacked(data, encoding, most), header_length)

        one_by_one = self._large if encoding or len(data) > SMALL else None
        return await run_sync(read, limiter=one_by_one)

    async def _answered(
        self, request: Request, name: str, model: Model, asked: InferRequest, watch: Stopwatch
    ) -> Response:
        channel = Channel()
        try:
            orders = await run_in_threadpool(
                model.submit,
                replace(asked, trace_parent=request.headers.get("traceparent", "")),
                client_of(request),
                channel.tell,
            )
        except DqError as error:
            refused = error_of_refusal(error, self._service.retry_after())
            self._service.metrics.refused(refused.status)
            raise refused from error
        request.state.order = orders[0]
        read_ns = watch.lap()
        found = await until_done(request, self._service, orders, channel)
        done_ns = watch.lap()
        queue_ns = min(done_ns, round(1e9 * min((o.started_at or o.accepted_at) - o.accepted_at for o in orders)))

        accepted = request.headers.get("accept-encoding", "")

        def written() -> Response:
            outputs = wanted_outputs(asked, model.form)
            return infer_response(name, asked, outputs, model.answer(orders, found), accepted)

        response = await run_in_threadpool(written)
        response.headers["x-request-id"] = orders[0].id
        model.statistics.answered(
            Spent(compute_input=read_ns, queue=queue_ns, compute_infer=done_ns - queue_ns, compute_output=watch.lap())
        )
        return response


def _check_size(size: int, most: int) -> None:
    if size > most:
        if most == MOST_JSON:
            raise json_too_large(size)
        raise ApiError(413, f"the body has {size} bytes, expected at most {most} for this model")


def _check_ready(service: Service) -> None:
    if not service.ready:
        raise ApiError(503, "the server stops and takes no more requests", retry_after=service.retry_after())


def _refusing(reason: str) -> Callable[[], None]:
    def refuse() -> None:
        raise ApiError(404, reason)

    return refuse
