"""What a client asks for, checked: a body becomes a call of the pipeline and the terms it is served on."""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dq_deploy.models.pipeline import PipelineCall
from dq_deploy.models.pipeline.call import LARGEST_SEED, LONGEST_PROMPT, has_half_characters
from dq_deploy.models.pipeline.pictures import PictureData
from dq_deploy.serve import MOST_STEPS
from dq_deploy.serve.card import Labels, ModelCard
from dq_deploy.serve.orders import PictureFormat, Terms
from dq_deploy.serve.web.errors import ApiError

MOST_PICTURES = 100
MOST_PARTIAL = 3
LARGEST_SIDE = 8192
MOST_TIMES_THE_DEFAULT = 4
"""A picture may have so many times the pixels of one of the model's own size."""

MOST_PARTS = 50_000
"""Lists and objects of a JSON body: Python's garbage collector makes ten times as many take a second."""

_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


class GenerationBody(BaseModel):
    """Body of a request for pictures: what OpenAI's images API has, and further names of this server's own."""

    model_config = ConfigDict(extra="forbid", title="Generation")

    prompt: str = Field(description="What the picture shows; of a model with classes its label; else empty.")
    model: str | None = Field(None, description="Name of the model, or left out.")
    n: int | None = Field(1, ge=1, le=MOST_PICTURES, description="Pictures.")
    size: str | None = Field("auto", description="WIDTHxHEIGHT in pixels, or auto.")
    response_format: Literal["b64_json"] | None = Field(None, description="Pictures come inside the answer.")
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    output_compression: int | None = Field(100, ge=0, le=100, description="Quality of jpeg and webp.")
    stream: bool | None = Field(False, description="Answer by server-sent events.")
    partial_images: int | None = Field(0, ge=0, le=MOST_PARTIAL, description="Pictures on the way, with stream.")
    user: str | None = Field(None, max_length=256, description="Who asks, for a fair share.")
    safety_identifier: str | None = Field(None, max_length=256, description="Likewise; it is preferred.")
    quality: Literal["auto"] | None = "auto"
    background: Literal["auto", "opaque"] | None = "auto"
    moderation: Literal["auto", "low"] | None = Field(None, description="Nothing is moderated.")
    # of this server
    seed: int | None = Field(None, ge=0, le=LARGEST_SEED, description="Of all random numbers; else drawn and said.")
    steps: int | None = Field(None, ge=1, le=MOST_STEPS, description="Denoising steps.")
    guidance: float | None = Field(None, description="Scale of guidance.")
    negative_prompt: str | None = Field(None, max_length=LONGEST_PROMPT, description="What the picture does not show.")
    priority: int | None = Field(0, ge=-10, le=10, description="Higher ones go first.")
    timeout_s: float | None = Field(None, gt=0, description="Seconds until the request fails.")
    step_events: bool | None = Field(False, description="An event for each step, with stream.")
    preview_every: int | None = Field(0, ge=0, le=1000, description="A picture on the way each so many steps.")


class EditBody(GenerationBody):
    """Body of a request to change a picture, as a form; the picture and its mask are files of it."""

    model_config = ConfigDict(extra="forbid", title="Edit")

    strength: float | None = Field(None, ge=0, le=1, description="How far the picture is changed.")
    input_fidelity: None = Field(None, description="Not known here.")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A checked request.

    Attributes:
        call: of the pipeline.
        terms: how it is served.
        file: of the pictures.
        stream: whether it is answered by events.
        size: of the pictures, as the client said it.
    """

    call: PipelineCall
    terms: Terms
    file: PictureFormat
    stream: bool
    size: str


def most_pixels(card: ModelCard) -> int:
    """Pixels of the largest picture that may be asked for or given."""
    return MOST_TIMES_THE_DEFAULT * card.width * card.height


def most_form_bytes(card: ModelCard) -> int:
    """Bytes of a form: a picture and a mask as large as they may be, hardly compressed, and the fields."""
    return 2 * (4 * most_pixels(card)) + 2**20


def read_json_body(data: bytes) -> dict[str, Any]:
    """The object of a JSON body.

    Raises:
        ApiError: it is none.
    """
    parts = data.count(b"[") + data.count(b"{")
    if parts > MOST_PARTS:
        message = f"the body has {parts} lists and objects, expected at most {MOST_PARTS}"
        raise ApiError(400, message, code="invalid_json")

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is no number of JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):  # Python would take the last one
            names = [name for name, _ in pairs]
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise ValueError(f"{twice[:60]!r} is given twice")
        return found

    try:
        found = json.loads(data, parse_constant=refuse, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        words = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ApiError(400, f"the body is no JSON ({words}); send an object", code="invalid_json") from error
    if not isinstance(found, dict):
        raise ApiError(400, f"the body is a {type(found).__name__}, expected an object", code="invalid_json")
    return found


def asked_of_json(body: Mapping[str, Any], card: ModelCard, client: str, time_limit_s: float) -> Asked:
    """A request for pictures.

    Raises:
        ApiError: it is not one this server can answer.
    """
    given = _validated(GenerationBody, body, strict=True)
    return _asked(given, card, client, time_limit_s, {})


def asked_of_form(
    fields: Mapping[str, str],
    image: PictureData,
    mask: PictureData | None,
    card: ModelCard,
    client: str,
    time_limit_s: float,
) -> Asked:
    """A request to change a picture.

    Raises:
        ApiError: it is not one this server can answer.
    """
    given = _validated(EditBody, fields, strict=False)
    assert isinstance(given, EditBody)
    more: dict[str, Any] = {"image": image, "mask": mask, "strength": given.strength}
    return _asked(given, card, client, time_limit_s, more)


def _validated(kind: type[GenerationBody], body: Mapping[str, Any], *, strict: bool) -> GenerationBody:
    if body.get("response_format") == "url":
        message = "response_format is url, expected b64_json: this server keeps no pictures to point to"
        raise ApiError(400, message, param="response_format", code="unsupported_value")
    odd = next((name for name in body if name not in kind.model_fields), None)
    if odd is not None:  # pydantic would make an error of each, and there may be very many
        shown = odd if len(odd) <= 60 and odd.isprintable() else repr(odd)[:60]
        raise ApiError(400, f"unknown parameter: {shown}", param=shown, code="unknown_parameter")
    try:
        return kind.model_validate(dict(body), strict=strict)
    except ValidationError as error:
        raise _of_validation(error) from error


def _of_validation(error: ValidationError) -> ApiError:
    first = error.errors()[0]
    shown = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "missing":
        return ApiError(400, f"missing parameter: {shown}", param=shown, code="missing_required_parameter")
    got = repr(first["input"])
    got = got if len(got) <= 60 else f"{got[:57]}..."
    wanted = str(first["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    return ApiError(400, f"{shown} is {got}, expected {wanted}", param=shown, code="invalid_value")


def _asked(given: GenerationBody, card: ModelCard, client: str, time_limit_s: float, more: Mapping[str, Any]) -> Asked:
    for name, text in (("prompt", given.prompt), ("negative_prompt", given.negative_prompt), ("user", given.user)):
        if text is not None and has_half_characters(text):
            raise ApiError(400, f"{name} holds half a character (a lone surrogate)", param=name, code="invalid_value")
    if given.model not in (None, "", card.name):
        message = f"the model {given.model!r} is not served here, expected {card.name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")
    _check_stream(given, card)
    width, height = _sides(given.size or "auto", card)
    file, quality = given.output_format or "png", given.output_compression
    if file == "png" and quality not in (None, 100):
        message = "output_compression is for jpeg and webp; a png loses nothing"
        raise ApiError(400, message, param="output_compression", code="invalid_value")
    call = PipelineCall(
        **_what(given.prompt, card),
        negative_prompt=given.negative_prompt,
        guidance=_finite("guidance", given.guidance),
        steps=given.steps or card.steps,
        height=height,
        width=width,
        seed=secrets.randbelow(LARGEST_SEED + 1) if given.seed is None else given.seed,
        count=given.n or 1,
        **more,
    )
    limit = min(_finite("timeout_s", given.timeout_s) or time_limit_s, time_limit_s)
    terms = Terms(
        client=client,
        user=given.safety_identifier or given.user or "",
        priority=given.priority or 0,
        time_limit_s=limit,
        partial_images=given.partial_images or 0,
        step_events=bool(given.step_events),
        preview_every=given.preview_every or 0,
    )
    size = f"{width or card.width}x{height or card.height}"
    image = PictureFormat(name=file, quality=100 if quality is None else quality)
    return Asked(call=call, terms=terms, file=image, stream=bool(given.stream), size=size)


def _check_stream(given: GenerationBody, card: ModelCard) -> None:
    wanted = {
        "partial_images": given.partial_images,
        "step_events": given.step_events,
        "preview_every": given.preview_every,
    }
    for name, value in wanted.items():
        if value and not given.stream:
            raise ApiError(400, f"{name} is for a request with stream true", param=name, code="invalid_value")
    if given.preview_every and not given.step_events:
        message = "preview_every is for a request with step_events true"
        raise ApiError(400, message, param="preview_every", code="invalid_value")
    if (given.partial_images or given.preview_every) and not card.previews:
        name = "partial_images" if given.partial_images else "preview_every"
        message = f"pictures on the way cannot be shown: {card.no_previews}; ask for none"
        raise ApiError(400, message, param=name, code="unsupported_value")


def _finite(name: str, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise ApiError(400, f"{name} is {value}, expected a finite number", param=name, code="invalid_value")
    return value


def _sides(size: str, card: ModelCard) -> tuple[int | None, int | None]:
    """Width and height that are asked for; None where they are the model's own."""
    if size == "auto":
        return None, None
    found = _SIZE.fullmatch(size)
    own = f"{card.width}x{card.height}"
    if found is None:
        shown = size if len(size) <= 40 else f"{size[:37]}..."
        message = f"size is {shown!r}, expected auto or WIDTHxHEIGHT in pixels, as {own}"
        raise ApiError(400, message, param="size", code="invalid_value")
    width, height = int(found[1]), int(found[2])
    if (width, height) == (card.width, card.height):
        return None, None
    if not card.sizes_vary:
        raise ApiError(400, f"size is {size}, expected {own} or auto", param="size", code="invalid_value")
    most = most_pixels(card)
    if width * height > most or max(width, height) > LARGEST_SIDE:
        message = f"size is {size}, expected at most {most} pixels and {LARGEST_SIDE} a side"
        raise ApiError(400, message, param="size", code="invalid_value")
    return width, height


def _what(prompt: str, card: ModelCard) -> dict[str, Any]:
    """What is drawn, as arguments of a call."""
    if card.takes == "prompt":
        if not prompt.strip():
            raise ApiError(400, "prompt is empty, expected words", param="prompt", code="invalid_value")
        if len(prompt) > LONGEST_PROMPT:
            message = f"prompt has {len(prompt)} characters, expected at most {LONGEST_PROMPT}"
            raise ApiError(400, message, param="prompt", code="string_above_max_length")
        return {"prompts": (prompt,)}
    if card.labels is not None:
        return {"labels": (_label(prompt, card.labels),)}
    if prompt.strip():
        message = "the model takes no prompt, expected an empty one"
        raise ApiError(400, message, param="prompt", code="invalid_value")
    return {}


def _label(prompt: str, labels: Labels) -> int:
    text = prompt.strip()
    if labels.names is not None and text in labels.names:
        return labels.names[text]
    if re.fullmatch("[0-9]{1,9}", text) and labels.low <= int(text) <= labels.high:
        return int(text)
    names = "" if labels.names is None else " or a class by its name"
    shown = text if len(text) <= 40 else f"{text[:37]}..."
    message = f"prompt is {shown!r}, expected a class from {labels.low} to {labels.high}{names}"
    raise ApiError(400, message, param="prompt", code="invalid_value")
