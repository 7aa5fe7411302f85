"""What tracing has to know of a quantized layer: its shape, and which of its quantizers are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from dq_deploy.numerics.geometry import Window
from dq_deploy.record import Layer, Part


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Shape of an integer layer, without its weights.

    Attributes:
        window: of a convolution, None for linear.
        groups: channel groups.
        out_channels: output channels or features.
        parts: input channels of each part.
        quantizers: number of each part's, the same exactly where two parts of the record give the same codes for the
            same values; numbers, for a record with other ranges has the same program.
    """

    window: Window | None
    groups: int
    out_channels: int
    parts: tuple[int, ...]
    quantizers: tuple[int, ...]


def geometries(layers: Mapping[str, Layer]) -> dict[str, Geometry]:
    """Shapes of integer layers by module path."""
    numbers: dict[str, int] = {}

    def number(layer: Layer, part: Part) -> int:
        return numbers.setdefault(_quantizer_hash(layer, part), len(numbers))

    return {
        name: Geometry(
            window=layer.window if layer.kind == "conv2d" else None,
            groups=layer.groups,
            out_channels=layer.out_channels,
            parts=tuple(len(part.pre) for part in layer.parts),
            quantizers=tuple(number(layer, part) for part in layer.parts),
        )
        for name, layer in layers.items()
    }


def _quantizer_hash(layer: Layer, part: Part) -> str:
    digest = hashlib.sha256(f"{layer.q_min},{layer.q_max}".encode())
    for values in (part.pre, part.scale, part.zero_point):
        digest.update(f"{values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]
