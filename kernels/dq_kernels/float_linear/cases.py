"""Shapes and inputs the float linear layer is tested and measured with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Case:
    """One linear layer; `inputs` are the arguments of the reference."""

    name: str
    rows: int
    channels: int
    out_channels: int
    bias: bool = True
    seed: int = 0
    model: str = ""

    @property
    def macs(self) -> int:
        """Products."""
        return self.rows * self.channels * self.out_channels

    def inputs(self) -> dict[str, Any]:
        """x, weights and bias."""
        rng = np.random.default_rng(self.seed)
        return {
            "x": rng.standard_normal((self.rows, self.channels)).astype(np.float32),
            "weights": rng.standard_normal((self.out_channels, self.channels)).astype(np.float32),
            "bias": rng.standard_normal(self.out_channels).astype(np.float32) if self.bias else None,
        }


TEST_CASES = (
    Case(name="one", rows=1, channels=1, out_channels=1),
    Case(name="few-rows", rows=3, channels=133, out_channels=70),
    Case(name="no-bias", rows=5, channels=64, out_channels=33, bias=False),
    Case(name="odd", rows=77, channels=300, out_channels=45),
    Case(name="several-blocks", rows=205, channels=515, out_channels=200, bias=False),
    Case(name="narrow", rows=500, channels=5, out_channels=3),
)
SHAPE_CASES = (
    Case(name="time-embedding", rows=1, channels=512, out_channels=512, model="cifar10-ddpm"),
    Case(name="query", rows=256, channels=256, out_channels=256, model="cifar10-ddpm"),
    Case(name="query", rows=8192, channels=320, out_channels=320, model="sd15"),
    Case(name="feed-forward", rows=2048, channels=640, out_channels=5120, model="sdxl"),
)
CASES = TEST_CASES + SHAPE_CASES
