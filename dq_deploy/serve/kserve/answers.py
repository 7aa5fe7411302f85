"""What a client of KServe is told: descriptions of models, and tensors."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from dq_deploy.serve.card import ModelCard
from dq_deploy.serve.kserve.body import InferRequest, RequestedOutput
from dq_deploy.serve.kserve.forms import ModelForm, TensorForm
from dq_deploy.serve.kserve.model import Answer
from dq_deploy.serve.kserve.statistics import VERSION
from dq_deploy.serve.kserve.tensors import BYTES, binary_of, json_of

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_FASTEST = 1


def metadata_json(form: ModelForm, name: str) -> dict[str, Any]:
    """A model's description."""

    def tensors(entries: Sequence[TensorForm]) -> list[dict[str, Any]]:
        return [{"name": e.name, "datatype": e.datatype, "shape": list(e.shape)} for e in entries]

    return {
        "name": name,
        "versions": [VERSION],
        "platform": form.platform,
        "inputs": tensors(form.inputs),
        "outputs": tensors(form.outputs),
    }


def config_json(form: ModelForm, name: str, card: ModelCard) -> dict[str, Any]:
    """A model's configuration as Triton shows it; where an axis in front counts samples, shapes are without it."""

    def tensors(entries: Sequence[TensorForm]) -> list[dict[str, Any]]:
        return [
            {
                "name": entry.name,
                "data_type": "TYPE_STRING" if entry.datatype == BYTES else f"TYPE_{entry.datatype}",
                "dims": list(entry.shape[1:] if form.most_rows else entry.shape),
                **({"optional": True} if entry.optional else {}),
            }
            for entry in entries
        ]

    known = {
        "model": card.name,
        "engine": card.engine_version,
        "record_sha256": card.record_sha256,
        "steps": str(card.steps),
        "size": f"{card.width}x{card.height}",
    }
    return {
        "name": name,
        "platform": form.platform,
        "backend": "dq_deploy",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": form.most_rows,
        "input": tensors(form.inputs),
        "output": tensors(form.outputs),
        "parameters": {key: {"string_value": value} for key, value in known.items() if value is not None},
    }


def infer_response(
    name: str, asked: InferRequest, outputs: Sequence[RequestedOutput], answer: Answer, encoding: str
) -> Response:
    """The answer to an infer request.

    Args:
        name: of the model, as it was asked for.
        asked: the request.
        outputs: that are given.
        answer: the model's.
        encoding: of the request's header Accept-Encoding. An answer is compressed where it names one encoding alone, as
            Triton's client does when it is told to; a client that takes several gets none, for noise hardly shrinks.

    Raises:
        ApiError: values that JSON does not have.
    """
    tensors = {tensor.name: tensor for tensor in answer.tensors}
    entries: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for output in outputs:
        tensor = tensors[output.name]
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.values.shape),
        }
        if output.binary:
            parts.append(binary_of(tensor))
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = json_of(tensor)
        entries.append(entry)
    head: dict[str, Any] = {"model_name": name, "model_version": VERSION}
    if asked.id is not None:
        head["id"] = asked.id
    if answer.warnings:
        head["parameters"] = {"warnings": "; ".join(answer.warnings)}
    text = json.dumps({**head, "outputs": entries}, separators=(",", ":")).encode()
    headers = {}
    if parts:
        headers["Inference-Header-Content-Length"] = str(len(text))
    body = b"".join((text, *parts))
    wanted = encoding.strip().lower()
    if wanted in _WINDOW_BITS:
        packer = zlib.compressobj(_FASTEST, wbits=_WINDOW_BITS[wanted])
        body = packer.compress(body) + packer.flush()
        headers["Content-Encoding"] = wanted
    return Response(body, media_type="application/octet-stream" if parts else "application/json", headers=headers)
