"""How an engine with unsigned 8-bit activations may hold the centred codes of a layer part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dq_deploy.numerics import FLOAT32_EXACT, worst_pair_product
from dq_deploy.record import Layer, Part

PAIR_LIMIT = 32767
"""Largest int16: where engines add two u8 x s8 products before they widen."""


@dataclass(frozen=True, kw_only=True)
class HeldCodes:
    """Unsigned codes of one part, and what the integer product then holds.

    Attributes:
        offset: codes hold c + offset for every sample, or None where they hold c + z[t].
        highest: largest code that can occur.
        saturates: uint8 saturation alone does the clamp, so no bounds are needed in front.
    """

    offset: int | None
    highest: int
    saturates: bool


def held_codes(layer: Layer, part: Part) -> HeldCodes:
    """One offset for all steps where the shifted codes fit 0..255, else the zero point of the sample."""
    z = part.zero_point.astype(np.int64)
    low, high = layer.q_min - z, layer.q_max - z
    offset = int(max(0, -low.min()))
    highest = int(max(0, high.max())) + offset
    if highest <= 255:
        saturates = bool((low + offset == 0).all() and (high + offset == 255).all())
        return HeldCodes(offset=offset, highest=highest, saturates=saturates)
    return HeldCodes(offset=None, highest=255, saturates=True)


def pair_safe(q_weight: NDArray[np.integer], highest: int) -> bool:
    """Whether signed weights are exact on engines that add u8 x s8 pairs in int16."""
    return worst_pair_product(q_weight, highest) <= PAIR_LIMIT


def float32_holds(q_weight: NDArray[np.integer], part: Part) -> bool:
    """Whether the accumulator of codes c + z and its correction z * sum(w) are exact in float32."""
    rows = np.abs(q_weight.astype(np.int64)).reshape(q_weight.shape[0], -1).sum(axis=1)
    largest = max(255, int(np.abs(part.zero_point).max()))
    return bool(largest * rows.max(initial=0) < FLOAT32_EXACT)
