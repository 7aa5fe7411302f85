"""OpenAI's images API: pictures from a prompt, and pictures changed, in one answer or event by event."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import Response, StreamingResponse

from dq_deploy.errors import DqError
from dq_deploy.models.pipeline.pictures import PictureData
from dq_deploy.serve.orders import Event, Failure, Kind, Order, PartialPicture, Picture, StepDone
from dq_deploy.serve.service import Service
from dq_deploy.serve.web.access import client_of
from dq_deploy.serve.web.asked import (
    Asked,
    EditBody,
    GenerationBody,
    asked_of_form,
    asked_of_json,
    most_pixels,
    read_json_body,
)
from dq_deploy.serve.web.channel import Channel, until_done
from dq_deploy.serve.web.descriptions import ERRORS, IMAGES, STREAM, form_of, schema_of
from dq_deploy.serve.web.errors import ApiError, error_of_failure, error_of_refusal

_FILES = ("image", "mask")
MOST_FIELDS = 40

QUIET_SECONDS = 15.0
"""Without an event, behind which a stream says that it is there."""

MOST_FORMS = 4
"""Forms that are read at once; others wait, unread."""


def images_router(service: Service) -> APIRouter:
    """`/v1/images/generations` and `/v1/images/edits`."""
    router = APIRouter(tags=["images"])
    gate = asyncio.Semaphore(MOST_FORMS)
    answers: dict[int | str, dict[str, Any]] = {
        **ERRORS,
        200: {"description": "The pictures.", "content": {"application/json": {"schema": IMAGES}, **STREAM}},
    }

    @router.post(
        "/v1/images/generations",
        response_class=Response,
        responses=answers,
        openapi_extra={"requestBody": schema_of(GenerationBody)},
        operation_id="generate",
    )
    async def generations(request: Request) -> Response:
        """Draw pictures of a prompt or a label."""
        body = read_json_body(await request.body())
        asked = asked_of_json(body, service.card, client_of(request), service.limits.time_limit_s)
        return await _answer(request, service, asked, Kind.GENERATION)

    @router.post(
        "/v1/images/edits",
        response_class=Response,
        responses=answers,
        openapi_extra={"requestBody": form_of(EditBody)},
        operation_id="edit",
    )
    async def edits(request: Request) -> Response:
        """Change a picture as a prompt says, all of it or what a mask shows."""
        if not service.card.edits:
            message = f"the {service.card.pipeline} changes no pictures; ask /v1/images/generations for new ones"
            raise ApiError(404, message, code="unsupported")
        async with gate:
            fields, files = await _form_of(request, most_pixels(service.card))
        picture = files.get("image")
        if picture is None:
            raise ApiError(400, "missing parameter: image", param="image", code="missing_required_parameter")
        time_limit = service.limits.time_limit_s
        asked = asked_of_form(fields, picture, files.get("mask"), service.card, client_of(request), time_limit)
        return await _answer(request, service, asked, Kind.EDIT)

    return router


async def _form_of(request: Request, pixels: int) -> tuple[dict[str, str], dict[str, PictureData]]:
    """Fields and files of a multipart form."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(415, "the body is no multipart/form-data, expected a form with the file image")
    try:
        form = await request.form(max_files=len(_FILES) + 1, max_fields=MOST_FIELDS)
    except Exception as error:
        if isinstance(error, ApiError):
            raise
        raise ApiError(400, f"the form cannot be read ({getattr(error, 'detail', error)})") from error
    fields: dict[str, str] = {}
    files: dict[str, PictureData] = {}
    try:
        for sent, value in form.multi_items():
            name = "image" if sent == "image[]" else sent
            if name in fields or name in files:
                raise ApiError(400, f"{name[:60]} is given twice, expected once", code="invalid_value")
            if not isinstance(value, UploadFile):
                fields[name] = value
            elif name in _FILES:
                files[name] = PictureData(name=name, data=await value.read(), most_pixels=pixels)
            else:
                raise ApiError(400, f"unknown parameter: {name[:60]}", code="unknown_parameter")
    finally:
        await form.close()
    return fields, files


async def _answer(request: Request, service: Service, asked: Asked, kind: Kind) -> Response:
    channel = Channel()
    terms = replace(asked.terms, trace_parent=request.headers.get("traceparent", ""))
    try:
        order = await run_in_threadpool(
            service.submit, asked.call, terms, listener=channel.tell, kind=kind, file=asked.file
        )
    except DqError as error:
        refused = error_of_refusal(error, service.retry_after())
        service.metrics.refused(refused.status)
        raise refused from error
    request.state.order = order
    headers = {"x-request-id": order.id}
    if asked.stream:
        stream = _events(service, order, channel, asked, "edit" if kind is Kind.EDIT else "generation")
        headers |= {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
    events = await until_done(request, service, [order], channel)
    pictures = sorted((event for event in events if isinstance(event, Picture)), key=lambda picture: picture.index)
    return JSONResponse(_answered(order, pictures, asked), headers=headers)


def _answered(order: Order, pictures: list[Picture], asked: Asked) -> dict[str, Any]:
    first = pictures[0]
    remarks = list(dict.fromkeys(remark for picture in pictures for remark in picture.remarks))
    return {
        "created": int(time.time()),
        "background": "opaque",
        "output_format": asked.file.name,
        "quality": "auto",
        "size": f"{first.width}x{first.height}",
        "data": [{"b64_json": _text(picture), "seed": asked.call.seed, "index": picture.index} for picture in pictures],
        "usage": _usage(order),
        **({"warnings": remarks} if remarks else {}),
    }


def _usage(order: Order) -> dict[str, Any]:
    """Tokens of the prompt; a picture has none."""
    details = {"text_tokens": order.text_tokens, "image_tokens": 0}
    return {
        "input_tokens": order.text_tokens,
        "input_tokens_details": details,
        "output_tokens": 0,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": 0},
        "total_tokens": order.text_tokens,
    }


def _text(picture: Picture) -> str:
    return base64.b64encode(picture.data).decode("ascii")


async def _events(service: Service, order: Order, channel: Channel, asked: Asked, kind: str) -> AsyncIterator[bytes]:
    """The answer as server-sent events; where the client goes away, the request is cancelled."""
    done = 0
    try:
        if asked.terms.step_events:
            position = next((s.position for s in service.standings() if s.order is order), None)
            yield _event(f"image_{kind}.queued", {"request_id": order.id, "position": position or 0})
        while done < order.count:
            try:
                event = await asyncio.wait_for(channel.next(), QUIET_SECONDS)
            except TimeoutError:
                yield b": waiting\n\n"  # a comment, so that no proxy takes the connection for dead
                continue
            if isinstance(event, Failure):
                yield _line(
                    "error", {"type": "error", **error_of_failure(event).body("/v1/images"), "request_id": order.id}
                )
                return
            done += isinstance(event, Picture)
            yield _of_event(event, order, asked, kind)
    finally:
        service.cancel(order.id)


def _of_event(event: Event, order: Order, asked: Asked, kind: str) -> bytes:
    if isinstance(event, StepDone):
        preview = None if event.preview is None else _text(event.preview)
        step = {"image_index": event.index, "step": event.step, "steps": event.steps, "b64_json": preview}
        return _event(f"image_{kind}.step", {"request_id": order.id, **step})
    picture = event.picture if isinstance(event, PartialPicture) else event
    assert isinstance(picture, Picture)
    fields: dict[str, Any] = {
        "b64_json": _text(picture),
        "created_at": int(time.time()),
        "size": f"{picture.width}x{picture.height}",
        "quality": "auto",
        "background": "opaque",
        "output_format": asked.file.name,
        "request_id": order.id,
        "image_index": picture.index,
    }
    if isinstance(event, PartialPicture):
        return _event(f"image_{kind}.partial_image", {**fields, "partial_image_index": event.number})
    fields |= {"seed": asked.call.seed, "usage": _usage(order)}
    if picture.remarks:
        fields["warnings"] = list(picture.remarks)
    return _event(f"image_{kind}.completed", fields)


def _event(name: str, fields: dict[str, Any]) -> bytes:
    return _line(name, {"type": name, **fields})


def _line(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
