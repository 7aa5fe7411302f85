"""Bits that differ by layer because someone chose them so: by hand, or by a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dq_deploy.record import Record


@dataclass(frozen=True, kw_only=True)
class MixedBits:
    """Bits that someone chose by layer.

    Attributes:
        budget: bits a weight on average that were allowed; None where no budget was kept.
        average_bits: bits a weight on average that came of it; None likewise.
        activation_budget: activation bits on average, by multiply-accumulates, that were allowed; None likewise.
        average_activation_bits: what came of it; None likewise.
        layers: weight bits and activation bits of each layer as the record has them; the latter are None where
            activations stay float.
    """

    budget: float | None
    average_bits: float | None
    layers: dict[str, tuple[int, int | None]]
    activation_budget: float | None = None
    average_activation_bits: float | None = None


def mixed_bits_of(record: Record) -> MixedBits | None:
    """What the record says about bits chosen by layer, or None where nobody chose any."""
    options = record.provenance.get("options")
    by_hand = isinstance(options, Mapping) and bool(options.get("layer_bits"))
    stage = _bits_stage(record.provenance.get("history"))
    if not by_hand and stage is None:
        return None
    layers: dict[str, tuple[int, int | None]] = {
        x.name: (x.weight_bits, x.activation_bits) for x in record.layers.values()
    }
    layers |= {light.name: (light.weight_bits, None) for light in record.weight_only.values()}
    return MixedBits(
        budget=_number(stage, "budget"),
        average_bits=_number(stage, "average_bits"),
        layers=layers,
        activation_budget=_number(stage, "activation_budget"),
        average_activation_bits=_number(stage, "average_activation_bits"),
    )


def _bits_stage(history: Any) -> Mapping[str, Any] | None:
    entries = history if isinstance(history, (list, tuple)) else ()
    return next((e for e in entries if isinstance(e, Mapping) and e.get("stage") == "bits"), None)


def _number(stage: Mapping[str, Any] | None, key: str) -> float | None:
    value = (stage or {}).get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
