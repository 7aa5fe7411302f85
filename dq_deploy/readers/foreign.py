"""A fake-quant network as its source's file says it: per layer a weight, its quantizers, and what is left out.

For the first or second half of a layer's input channels, in float32, in this order::

    w_int = clamp(floor(W / delta) + [alpha >= 0] + zero_point, 0, 2^b - 1)      without alpha: round(W / delta)
    W_fake = (w_int - zero_point) * delta
    x_int = clamp(round(x / (gamma * mask * act_delta[t])) + act_zero_point[t], q_min, q_max)

with W times gamma where there is an equivalent scale gamma.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dq_deploy.numerics.arrays import F32, I32, I64, Array
from dq_deploy.record import AttentionQuantizers


@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignPart:
    """The quantizers of one half of the input channels, or of all.

    Attributes:
        delta: [C_out] float32.
        zero_point: [C_out] int32, rounded as the source does.
        alpha: weight's shape, where rounding was learned.
        act_delta: [T] or [1] float32, tables in the order of rising timesteps.
        act_zero_point: int32, as act_delta.
        masks: [T, C] exponents j of channel factors 2^-j, or None.
    """

    delta: F32
    zero_point: I32
    alpha: Array | None
    act_delta: F32
    act_zero_point: I32
    masks: I64 | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignLayer:
    """A layer whose weight the source quantizes.

    Attributes:
        path: in the source's network.
        weight: float32, what the codes are made from, before gamma.
        bias: [C_out] or None.
        widths: input channels of each part.
        parts: one or two.
        weight_bits: 2 to 8.
        activation_bits: 2 to 8.
        signed: whether activation codes are signed.
        gamma: [C_in] float32 or None.
        float_reason: why its product cannot be an integer one though its weight is quantized; "" where it can.
    """

    path: str
    weight: F32
    bias: F32 | None
    widths: tuple[int, ...]
    parts: tuple[ForeignPart, ...]
    weight_bits: int
    activation_bits: int
    signed: bool
    gamma: F32 | None = None
    float_reason: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignModel:
    """What a reader found.

    Attributes:
        state: every float parameter by the source's key.
        layers: layers with a quantized weight, by path.
        floats: layers that the source leaves float, by path, with the reason.
        dropped: quantizers of attention that the record does not keep, with the reason, by the source's name.
        timesteps: [T] float32, rising.
        step_edges: [T-1] float32.
        notes: for the history, JSON values.
        attention: quantizers of attention's products, by diffusers path, tables in the order of rising timesteps.
    """

    state: Mapping[str, Array]
    layers: Mapping[str, ForeignLayer]
    floats: Mapping[str, str]
    dropped: Mapping[str, str]
    timesteps: F32
    step_edges: F32
    notes: tuple[Mapping[str, Any], ...] = field(default_factory=tuple)
    attention: Mapping[str, AttentionQuantizers] = field(default_factory=dict)
