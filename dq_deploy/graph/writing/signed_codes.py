"""How an engine with symmetric int8 activations may hold the centred codes of a layer part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dq_deploy.record import Layer, Part


@dataclass(frozen=True, kw_only=True)
class SignedCodes:
    """int8 codes of one part.

    Attributes:
        offset: codes hold c + offset for every sample, or None where they hold c + z[t] + shift.
        shift: see above; 0 where there is an offset.
        saturates: int8 saturation alone does the clamp, so no bounds are needed in front.
    """

    offset: int | None
    shift: int
    saturates: bool

    def added(self, part: Part) -> NDArray[np.int64]:
        """What is added to the centred codes at each step bucket: [T] or [1]."""
        if self.offset is not None:
            return np.full(1, self.offset, np.int64)
        shifted: NDArray[np.int64] = part.zero_point.astype(np.int64) + self.shift
        return shifted


def signed_codes(layer: Layer, part: Part) -> SignedCodes:
    """Centred codes where they fit int8, else one offset for all steps, else the zero point of the sample."""
    z = part.zero_point.astype(np.int64)
    low, high = layer.q_min - z, layer.q_max - z
    span = int(high.max() - low.min())
    if span <= 255:
        offset = 0 if low.min() >= -128 and high.max() <= 127 else int(-128 - low.min())
        saturates = bool((low + offset == -128).all() and (high + offset == 127).all())
        return SignedCodes(offset=offset, shift=0, saturates=saturates)
    return SignedCodes(offset=None, shift=-128 - layer.q_min, saturates=layer.reach == 255)


def padding_reason(layer: Layer) -> str:
    """Why padding cannot be expressed in these codes, or an empty string.

    Padding contributes the centred code 0. Where codes are shifted the float tensor is padded, and its 0 has the
    centred code 0 only if the zero point lies within the code range.
    """
    if not any(layer.padding):
        return ""
    for part in layer.parts:
        z = part.zero_point
        outside = (z < layer.q_min) | (z > layer.q_max)
        if signed_codes(layer, part).offset != 0 and outside.any():
            return (
                f"zero point {int(z[outside][0])} lies outside {layer.q_min}..{layer.q_max}; "
                "padding then has no code of its own"
            )
    return ""
