"""What the description of the API (OpenAPI) says of bodies and answers that are read and written by hand."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
"""The form of every error."""

WORDS = {
    400: "The request is not one this server can answer.",
    401: "The token is missing or wrong.",
    403: "A page of another site asks.",
    404: "There is no such thing.",
    405: "Not by this method.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is of another type.",
    429: "Too many pictures wait; ask again after the seconds of Retry-After.",
    500: "The server failed.",
    503: "The server stops.",
    504: "The request was not done in time.",
}
"""What each status of an error means."""

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": words, "content": {"application/json": {"schema": ERROR}}}
    for status, words in WORDS.items()
}
"""The errors that every path may answer."""

_STRING = {"type": "string"}
_WHOLE = {"type": "integer"}

IMAGES: dict[str, Any] = {
    "type": "object",
    "required": ["created", "data", "size", "output_format"],
    "properties": {
        "created": _WHOLE,
        "background": _STRING,
        "output_format": _STRING,
        "quality": _STRING,
        "size": _STRING,
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["b64_json", "seed", "index"],
                "properties": {"b64_json": _STRING, "seed": _WHOLE, "index": _WHOLE},
            },
        },
        "usage": {"type": "object"},
        "warnings": {"type": "array", "items": _STRING},
    },
}
"""Pictures in one answer."""

STREAM: dict[str, Any] = {"text/event-stream": {"schema": _STRING}}
"""Server-sent events."""


def schema_of(kind: type[BaseModel]) -> dict[str, Any]:
    """A JSON body."""
    return {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}


def form_of(kind: type[BaseModel]) -> dict[str, Any]:
    """A form with the files image and mask."""
    schema = kind.model_json_schema()
    binary = {"type": "string", "format": "binary"}
    schema["properties"] = {**schema["properties"], "image": binary, "mask": binary}
    schema["required"] = [*schema["required"], "image"]
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
