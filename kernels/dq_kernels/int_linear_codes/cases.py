"""Shapes and inputs that the linear layer with codes of its result is tested and measured with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dq_kernels.int_linear.cases import Case as Layer
from dq_kernels.quantize.cases import random_quantizer


@dataclass(frozen=True, kw_only=True)
class Case:
    """One layer, what stands behind it and its codes; `inputs` are the arguments of the reference.

    Attributes:
        layer: the linear layer.
        activation: an elementwise kind that reads one value.
        gated: GEGLU in its place.
        first: channel of the result where the codes begin, and as many are left out at its end.
        bits: of the codes.
    """

    layer: Layer
    activation: str = "copy"
    gated: bool = False
    first: int = 0
    bits: int = 8

    @property
    def name(self) -> str:
        """Unique."""
        return f"{self.layer.name}, {'geglu' if self.gated else self.activation}"

    def inputs(self) -> dict[str, Any]:
        """Arguments of the reference."""
        rng = np.random.default_rng(self.layer.seed + 100)
        channels = self.layer.out_channels // (2 if self.gated else 1) - 2 * self.first
        given = self.layer.inputs()
        given.pop("previous")
        steps = self.layer.steps
        output = random_quantizer(rng, channels, bits=self.bits, steps=steps, first=self.first)
        return given | {"output": output, "activation": self.activation, "gated": self.gated}


TEST_CASES = (
    Case(layer=Layer(name="one of each", channels=1, out_channels=1)),
    Case(layer=Layer(name="odd", batch=3, rows=5, channels=33, out_channels=5, steps=3), activation="gelu_tanh"),
    Case(
        layer=Layer(
            name="by step", batch=5, rows=7, channels=40, out_channels=70, steps=3, extras=("bias",), bias_by_step=True
        ),
        activation="silu",
        first=3,
    ),
    Case(
        layer=Layer(name="rows of samples", batch=7, rows=9, channels=70, out_channels=96, steps=5), activation="relu"
    ),
    Case(
        layer=Layer(
            name="all extras",
            batch=2,
            rows=19,
            channels=70,
            out_channels=33,
            weight_bits=8,
            extras=("bias", "row", "residual"),
        ),
        activation="gelu",
        bits=4,
    ),
    Case(layer=Layer(name="one panel each", batch=3, rows=11, channels=64, out_channels=64, steps=4), gated=True),
    Case(
        layer=Layer(name="panels", batch=2, rows=261, channels=100, out_channels=320, steps=2, weight_bits=8),
        gated=True,
        first=5,
    ),
    Case(layer=Layer(name="no rows to spare", rows=1, channels=300, out_channels=192), gated=True, bits=5),
    Case(
        layer=Layer(
            name="zeros",
            batch=2,
            rows=40,
            channels=70,
            out_channels=128,
            weight_bits=8,
            steps=4,
            weight_zero=(-128, 127),
        ),
        gated=True,
    ),
    Case(layer=Layer(name="blocks", rows=35, channels=12800, out_channels=64), gated=True),
    Case(layer=Layer(name="blocks", rows=35, channels=12800, out_channels=40, weight_bits=8), activation="gelu"),
)
SHAPE_CASES = tuple(
    Case(
        layer=Layer(
            name=f"{model} {rows}x{channels}->{out}", rows=rows, channels=channels, out_channels=out, model=model
        ),
        gated=model != "dit-xl",
        activation="copy" if model != "dit-xl" else "gelu_tanh",
    )
    for model, rows, channels, out in (
        ("sd15", 8192, 320, 2560),
        ("sd15", 2048, 640, 5120),
        ("sd15", 512, 1280, 10240),
        ("dit-xl", 512, 1152, 4608),
    )
)
"""Feed-forward layers of Stable Diffusion 1.5 at batch 2 and of DiT-XL at batch 2, 32 x 32."""
