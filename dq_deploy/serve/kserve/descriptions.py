"""What the description of the API (OpenAPI) says of KServe's paths."""

from __future__ import annotations

from typing import Any

from dq_deploy.serve.kserve.tensors import BYTES, DTYPES
from dq_deploy.serve.web.descriptions import WORDS

ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}
"""The form of every error under `/v2`."""

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": words, "content": {"application/json": {"schema": ERROR}}}
    for status, words in WORDS.items()
}

_STRING: dict[str, Any] = {"type": "string"}

NAME = {"name": "name", "in": "path", "required": True, "schema": _STRING, "description": "Of the model."}
VERSION_PARAMETER = {"name": "version", "in": "path", "required": True, "schema": _STRING, "description": "Always 1."}

INFER_HEADERS = [
    {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "required": False,
        "schema": {"type": "string", "pattern": "^[0-9]{1,12}$"},
        "description": "Bytes of the JSON, where binary tensors come behind it.",
    }
]

_INPUT: dict[str, Any] = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "additionalProperties": False,
    "properties": {
        "name": _STRING,
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "maxItems": 8},
        "datatype": {"type": "string", "enum": [*DTYPES, BYTES]},
        "parameters": {"type": "object"},
        "data": {"type": "array"},
    },
}

_OUTPUT: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {"name": _STRING, "parameters": {"type": "object"}},
}

INFER_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "title": "Infer",
                "required": ["inputs"],
                "additionalProperties": False,
                "properties": {
                    "id": _STRING,
                    "parameters": {"type": "object"},
                    "inputs": {"type": "array", "items": _INPUT, "minItems": 1, "maxItems": 64},
                    "outputs": {"type": "array", "items": _OUTPUT, "maxItems": 64},
                },
            }
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
"""JSON alone, or JSON with binary tensors behind it."""

INDEX_BODY: dict[str, Any] = {
    "required": False,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "additionalProperties": False,
                "properties": {"ready": {"type": "boolean"}},
            }
        }
    },
}
