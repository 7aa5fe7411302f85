"""Layers of a fake-quant network as integer layers of the record, exactly, or as float layers with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dq_deploy.errors import FileProblemError, OptionError, RecordError
from dq_deploy.models import LayerSite
from dq_deploy.numerics.arrays import F32, I32, I64
from dq_deploy.readers.architectures.module_paths import Target
from dq_deploy.readers.channel_factors import differ_by_step, elected, shifted
from dq_deploy.readers.foreign import ForeignLayer, ForeignPart
from dq_deploy.record import Layer, Part

FEW_LAYERS = 6
"""Fewer say nothing about the ranges of a network's activations."""
WIDEST, NARROWEST = 2.5, 1 / 3
"""Weights whose typical span is beyond these shares of the code range were not made with these bits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Converted:
    """A source layer's diffusers modules: integer layers, or the dequantized weight and why.

    Attributes:
        layers: by diffusers name; empty where `reason` says why.
        weight: dequantized, as a float layer multiplies it, of the source's shape; None for integer layers.
        reason: "" for integer layers.
        changed: channel factors that an election changed, over all steps, and how many there are.
    """

    layers: Mapping[str, Layer]
    weight: F32 | None
    reason: str
    changed: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Codes:
    """Integers of one part: `q` is the code less its zero point, `span` what it was before clamping, [C_out]."""

    q: I32
    span: F32


def scaled_weight(layer: ForeignLayer) -> F32:
    """What the source rounds: W * gamma in float32."""
    if layer.gamma is None:
        return layer.weight
    shape = (1, -1) + (1,) * (layer.weight.ndim - 2)
    scaled: F32 = (layer.weight * layer.gamma.reshape(shape)).astype(np.float32)
    return scaled


def _codes(weight: F32, part: ForeignPart, bits: int) -> _Codes:
    """Codes less zero points, by a division in float32: a reciprocal or float64 would flip some."""
    column = (-1,) + (1,) * (weight.ndim - 1)
    quotient = weight / part.delta.reshape(column)
    if part.alpha is None:
        steps = np.rint(quotient)
    else:
        steps = np.floor(quotient) + np.greater_equal(part.alpha, 0).astype(np.float32)
    rows = steps.reshape(len(steps), -1)
    zero = part.zero_point.reshape(column).astype(np.float32)
    code = np.clip(steps + zero, np.float32(0), np.float32(2**bits - 1))
    return _Codes(q=(code - zero).astype(np.int32), span=rows.max(axis=1) - rows.min(axis=1))


def _dequantized(layer: ForeignLayer, codes: list[_Codes]) -> F32:
    """What a float layer multiplies in place of the source's: codes times delta, over gamma where there is one."""
    pieces = []
    for integers, part in zip(codes, layer.parts, strict=True):
        q = integers.q.astype(np.float32)
        pieces.append(q * part.delta.reshape((-1,) + (1,) * (q.ndim - 1)))
    weight: F32 = np.concatenate(pieces, axis=1)
    if layer.gamma is not None:
        weight = (weight / layer.gamma.reshape((1, -1) + (1,) * (weight.ndim - 2))).astype(np.float32)
    return weight


def _pieces(layer: ForeignLayer) -> list[F32]:
    return np.split(scaled_weight(layer), np.cumsum(layer.widths)[:-1], axis=1)


def convert(
    layer: ForeignLayer, targets: tuple[Target, ...], sites: Mapping[str, LayerSite], *, masks: str
) -> Converted:
    """The integer layers of a source layer, or why it stays float.

    Args:
        layer: with its quantizers.
        targets: diffusers modules that share its rows.
        sites: geometry of each.
        masks: `float` or `vote`: what becomes of channel factors that differ by step.

    Raises:
        FileProblemError: the settings' bits contradict the weights.
    """
    codes = [_codes(piece, part, layer.weight_bits) for piece, part in zip(_pieces(layer), layer.parts, strict=True)]
    _check_bits(layer, codes)
    factors = [part.masks for part in layer.parts]
    reason = layer.float_reason
    if not reason and masks != "vote" and any(f is not None and differ_by_step(f) for f in factors):
        reason = "its power-of-two channel factors differ by step, which an integer layer cannot express"
    if reason:
        return Converted(layers={}, weight=_dequantized(layer, codes), reason=reason)
    votes = [(None, 0) if f is None else elected(f) for f in factors]
    try:
        layers = {t.name: _layer(layer, codes, t, sites[t.name], [v for v, _ in votes]) for t in targets}
    except RecordError as error:
        return Converted(
            layers={}, weight=_dequantized(layer, codes), reason=f"has no exact form in integers ({error})"
        )
    entries = sum(f.size for f in factors if f is not None)
    return Converted(layers=layers, weight=None, reason="", changed=(sum(n for _, n in votes), entries))


def _check_bits(layer: ForeignLayer, codes: list[_Codes]) -> None:
    levels = 2**layer.weight_bits - 1
    typical = float(np.median(np.concatenate([c.span for c in codes])))
    if not NARROWEST * levels <= typical <= WIDEST * levels:
        raise FileProblemError(
            f"layer {layer.path}: weights span {typical:g} steps of their scale, expected about {levels} at "
            f"{layer.weight_bits} bits; correct weight_bits or layer_bits in the settings"
        )


def check_activations(layers: Mapping[str, ForeignLayer]) -> None:
    """Zero points agree with the settings' bits and symmetry; some layers of every network see values of both signs.

    Raises:
        OptionError: all zero points are 0 though codes are unsigned, or they belong to a range of other bits.
    """
    groups: dict[int, list[int]] = {}
    for layer in layers.values():
        if not layer.signed and not layer.float_reason:
            groups.setdefault(layer.activation_bits, []).extend(
                int(np.median(part.act_zero_point)) for part in layer.parts
            )
    for bits, zeros in groups.items():
        levels, largest = 2**bits - 1, max(zeros)
        if len(zeros) >= FEW_LAYERS and largest == 0:
            raise OptionError(
                f"settings: every activation zero point of {len(zeros)} is 0, so codes are signed around zero; "
                "set symmetric_activations: true"
            )
        if len(zeros) >= FEW_LAYERS and not levels / 4 <= largest <= 1.25 * levels:
            raise OptionError(
                f"settings: activation zero points reach {largest}, expected up to about {levels} at {bits} bits; "
                "correct activation_bits or layer_bits"
            )


def _layer(
    layer: ForeignLayer,
    codes: list[_Codes],
    target: Target,
    site: LayerSite,
    exponents: list[I64 | None],
) -> Layer:
    rows = slice(None) if target.rows is None else target.rows
    half = 2 ** (layer.weight_bits - 1)
    pre = np.ones(sum(layer.widths), np.float32) if layer.gamma is None else (np.float32(1) / layer.gamma)
    parts = []
    for part, integers, mine in zip(layer.parts, codes, np.split(pre, np.cumsum(layer.widths)[:-1]), strict=True):
        zero = part.zero_point[rows]
        q = integers.q[rows].reshape(site.out_channels, -1, *site.kernel)
        column = (-1,) + (1,) * (q.ndim - 1)
        code = q + (zero - half).reshape(column)
        parts.append(
            Part(
                pre=np.ascontiguousarray(mine, np.float32),
                scale=part.act_delta,
                zero_point=part.act_zero_point,
                w_code=np.ascontiguousarray(code.astype(np.int8)[None]),
                w_zero_point=np.ascontiguousarray((zero - half)[None], np.int32),
                weight_scale=np.ascontiguousarray(part.delta[rows][None]),
            )
        )
    bits = layer.weight_bits
    if any(e is not None and e.any() for e in exponents):
        bits = 8  # shifted columns need more than the others
        parts = [p if e is None else _shifted(p, e) for p, e in zip(parts, exponents, strict=True)]
    low = -(2 ** (layer.activation_bits - 1)) if layer.signed else 0
    return Layer(
        name=site.name,
        kind=site.kind,
        stride=site.stride,
        padding=site.padding,
        dilation=site.dilation,
        groups=site.groups,
        weight_bits=bits,
        activation_bits=layer.activation_bits,
        q_min=low,
        q_max=low + 2**layer.activation_bits - 1,
        parts=tuple(parts),
        bias=None if layer.bias is None else np.ascontiguousarray(layer.bias[rows], np.float32),
    )


def _shifted(part: Part, exponents: I64) -> Part:
    result = shifted(part, exponents)
    if result is None:
        raise RecordError("weights shifted by power-of-two channel factors leave int8")
    return result
