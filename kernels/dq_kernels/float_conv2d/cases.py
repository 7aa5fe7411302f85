"""Shapes and inputs the float convolution is tested and measured with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Case:
    """One convolution; `inputs` are the arguments of the reference."""

    name: str
    batch: int = 1
    height: int
    width: int
    channels: int
    out_channels: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True
    seed: int = 0
    model: str = ""

    @property
    def macs(self) -> int:
        """Products, those with padding too."""
        window = self.kernel[0] * self.kernel[1] * self.channels // self.groups
        pixels = self.height * self.width // (self.stride[0] * self.stride[1])
        return self.batch * pixels * window * self.out_channels

    def inputs(self) -> dict[str, Any]:
        """x, weights, bias and how the window moves."""
        rng = np.random.default_rng(self.seed)
        weights = (self.out_channels, *self.kernel, self.channels // self.groups)
        return {
            "x": rng.standard_normal((self.batch, self.height, self.width, self.channels)).astype(np.float32),
            "weights": rng.standard_normal(weights).astype(np.float32),
            "bias": rng.standard_normal(self.out_channels).astype(np.float32) if self.bias else None,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }


TEST_CASES = (
    Case(name="point", height=1, width=1, channels=1, out_channels=1, kernel=(1, 1), padding=(0, 0, 0, 0)),
    Case(name="image-in", batch=3, height=9, width=7, channels=3, out_channels=33),
    Case(name="image-out", height=8, width=8, channels=70, out_channels=3, bias=False),
    Case(name="strided", batch=2, height=11, width=8, channels=12, out_channels=5, stride=(2, 2)),
    Case(name="asymmetric", height=8, width=9, channels=5, out_channels=8, stride=(2, 2), padding=(0, 1, 0, 1)),
    Case(name="dilated", height=10, width=9, channels=4, out_channels=6, padding=(2, 2, 2, 2), dilation=(2, 2)),
    Case(name="oblong", height=6, width=9, channels=7, out_channels=9, kernel=(1, 5), padding=(0, 0, 2, 2)),
    Case(name="groups", batch=2, height=5, width=6, channels=12, out_channels=18, groups=3),
    Case(name="each-channel", height=7, width=7, channels=33, out_channels=33, groups=33),
    Case(name="several-blocks", height=15, width=15, channels=64, out_channels=200),
    Case(name="padding-only", height=1, width=1, channels=3, out_channels=4, padding=(3, 3, 3, 3)),
)
SHAPE_CASES = (
    Case(name="in", height=32, width=32, channels=3, out_channels=128, model="cifar10-ddpm"),
    Case(name="out", height=32, width=32, channels=128, out_channels=3, model="cifar10-ddpm"),
    Case(name="16x16", height=16, width=16, channels=256, out_channels=256, model="cifar10-ddpm"),
    Case(name="in", batch=2, height=64, width=64, channels=4, out_channels=320, model="sd15"),
    Case(name="64x64", batch=2, height=64, width=64, channels=320, out_channels=320, model="sd15"),
    Case(name="out", batch=2, height=128, width=128, channels=320, out_channels=4, model="sdxl"),
)
CASES = TEST_CASES + SHAPE_CASES
