"""What tracing has to know of a quantized layer: its shape, and which of its quantizers are the same."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from dq_deploy.numerics.geometry import Window
from dq_deploy.record import Layer, Part, Record


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Shape of an integer layer, without its weights.

    Attributes:
        window: of a convolution, None for linear.
        groups: channel groups.
        out_channels: output channels or features.
        parts: input channels of each part.
        quantizers: for each part, equal exactly where two parts give the same codes for the same values.
    """

    window: Window | None
    groups: int
    out_channels: int
    parts: tuple[int, ...]
    quantizers: tuple[str, ...]


def geometry_of(layer: Layer) -> Geometry:
    """Shape of a record's layer."""
    return Geometry(
        window=layer.window if layer.kind == "conv2d" else None,
        groups=layer.groups,
        out_channels=layer.out_channels,
        parts=tuple(len(part.pre) for part in layer.parts),
        quantizers=tuple(_quantizer_hash(layer, part) for part in layer.parts),
    )


def geometries(record: Record) -> dict[str, Geometry]:
    """Shapes of all integer layers by module path."""
    return {name: geometry_of(layer) for name, layer in record.layers.items()}


def _quantizer_hash(layer: Layer, part: Part) -> str:
    digest = hashlib.sha256(f"{layer.q_min},{layer.q_max}".encode())
    for values in (part.pre, part.scale, part.zero_point):
        digest.update(f"{values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]
