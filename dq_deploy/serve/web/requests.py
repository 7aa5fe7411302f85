"""The model's card, and the requests that are there: their order, and an end for those that are not wanted."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from dq_deploy.serve.card import ModelCard
from dq_deploy.serve.service import Service, Standing
from dq_deploy.serve.web.errors import ApiError

_SHOWN = (
    *("takes", "pipeline", "scheduler", "denoiser", "sizes_vary", "steps", "guidance", "negative_prompt"),
    *("draws", "edits", "masks", "previews", "method", "weight_bits", "activation_bits", "integer_share"),
    *("engine", "engine_version", "record_sha256", "max_batch", "queue"),
)
"""What a card shows as it is."""


def requests_router(service: Service) -> APIRouter:
    """`/v1/models` and `/v1/requests`."""
    router = APIRouter()

    @router.get("/v1/models", operation_id="models", tags=["models"])
    def models() -> dict[str, Any]:
        """The model that is served."""
        return {"object": "list", "data": [card_json(service.card)]}

    @router.get("/v1/models/{name}", operation_id="model", tags=["models"])
    def model(name: str) -> dict[str, Any]:
        """Its card."""
        if name != service.card.name:
            message = f"the model {name[:100]!r} is not served here, expected {service.card.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return card_json(service.card)

    @router.get("/v1/requests", operation_id="requests", tags=["requests"])
    def requests() -> dict[str, Any]:
        """The requests that are not over: those that run, then those that wait in their order."""
        standings = service.standings()
        running = sum(standing.order.started_at is not None for standing in standings)
        return {
            "object": "list",
            "running": running,
            "waiting": len(standings) - running,
            "data": [standing_json(standing) for standing in standings],
        }

    @router.delete("/v1/requests/{request_id}", operation_id="cancel", tags=["requests"])
    def cancel(request_id: str) -> dict[str, Any]:
        """End a request; its pictures are given up within one step."""
        if not service.cancel(request_id):
            message = f"there is no request {request_id[:60]!r}; it may be over"
            raise ApiError(404, message, param="request_id", code="request_not_found")
        return {"id": request_id, "object": "request", "cancelled": True}

    return router


def card_json(card: ModelCard) -> dict[str, Any]:
    """A model as OpenAI's API shows one, with what is known of it under `dq`."""
    labels = None
    if card.labels is not None:
        labels = {"low": card.labels.low, "high": card.labels.high, "names": dict(card.labels.names or {}) or None}
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "dq_deploy",
        "dq": {
            **{name: getattr(card, name) for name in _SHOWN},
            "labels": labels,
            "size": f"{card.width}x{card.height}",
            "proof": None if card.proof is None else asdict(card.proof),
            "same_bytes": asdict(card.same_bytes),
        },
    }


def standing_json(standing: Standing) -> dict[str, Any]:
    """A request as the list shows it: nothing of what it asks for, and its client by a hash."""
    order, now = standing.order, time.monotonic()
    started = order.started_at
    return {
        "id": order.id,
        "object": "request",
        "kind": order.kind.value,
        "status": order.status.value,
        "position": standing.position,
        "priority": order.terms.priority,
        "n": order.count,
        "images_done": len(order.pictures),
        "step": order.steps_done,
        "steps": order.steps or None,
        "waited_s": round((started or now) - order.accepted_at, 3),
        "running_s": None if started is None else round(now - started, 3),
        "client": hashlib.sha256("|".join(order.terms.whose).encode()).hexdigest()[:8],
    }
