"""Bits that differ by layer because someone chose them so: by hand, or by a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dq_deploy.record import Record


def mixed_bits_of(record: Record) -> dict[str, Any] | None:
    """What the record says about bits chosen by layer, or None where nobody chose any.

    Returns:
        `budget` and `average_bits` where a budget was kept, else None for each; `layers`: [weight bits, activation
        bits] of each layer as the record has them, activations None where they stay float.
    """
    options = record.provenance.get("options")
    by_hand = isinstance(options, Mapping) and bool(options.get("layer_bits"))
    stage = _bits_stage(record.provenance.get("history"))
    if not by_hand and stage is None:
        return None
    layers: dict[str, list[int | None]] = {x.name: [x.weight_bits, x.activation_bits] for x in record.layers.values()}
    layers |= {light.name: [light.weight_bits, None] for light in record.weight_only.values()}
    return {"budget": _number(stage, "budget"), "average_bits": _number(stage, "average_bits"), "layers": layers}


def _bits_stage(history: Any) -> Mapping[str, Any] | None:
    entries = history if isinstance(history, (list, tuple)) else ()
    return next((e for e in entries if isinstance(e, Mapping) and e.get("stage") == "bits"), None)


def _number(stage: Mapping[str, Any] | None, key: str) -> float | None:
    value = (stage or {}).get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
