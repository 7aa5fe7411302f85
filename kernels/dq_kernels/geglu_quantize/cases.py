"""Cases of geglu_quantize: awkward ones for tests, those of the real models for benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dq_kernels.quantize.cases import buckets, random_quantizer


@dataclass(frozen=True)
class Case:
    """One call; `inputs` are the arguments of the reference and of `run`; channels are those of y."""

    name: str
    batch: int
    rows: int
    channels: int
    codes: bool = True
    spread: float = 2.0
    bits: int = 8
    steps: int = 1
    zero: str = "inner"
    seed: int = 0
    model: str = ""

    def inputs(self) -> dict[str, Any]:
        """The arguments, made from the seed."""
        rng = np.random.default_rng(self.seed)
        x = (rng.standard_normal((self.batch, self.rows, 2 * self.channels)) * self.spread).astype(np.float32)
        output = random_quantizer(rng, self.channels, bits=self.bits, steps=self.steps, zero=self.zero)
        return {"x": x, "step": buckets(self.batch, self.steps), "output": output if self.codes else None}


TEST_CASES = (
    Case("one value", 1, 1, 1),
    Case("3 channels", 1, 7, 3, seed=1),
    Case("5 channels, three steps", 3, 9, 5, steps=7, seed=2),
    Case("33 channels, 4 bits", 2, 6, 33, bits=4, steps=3, seed=3),
    Case("70 channels, zero point low", 3, 5, 70, steps=4, zero="low", seed=4),
    Case("96 channels, zero point high", 1, 49, 96, zero="high", seed=5),
    Case("no codes", 2, 21, 40, codes=False, seed=6),
    Case("large gates", 1, 21, 65, spread=20.0, zero="signed", seed=7),
    Case("tiny", 1, 11, 37, spread=1e-38, seed=8),
    Case("huge", 1, 11, 37, spread=1e19, seed=9),
)
SHAPE_CASES = (
    Case("sd15 64x64 1280", 2, 4096, 1280, steps=50, model="sd15"),
    Case("sd15 32x32 2560", 2, 1024, 2560, steps=50, model="sd15"),
    Case("sd15 16x16 5120", 2, 256, 5120, steps=50, model="sd15"),
    Case("sdxl 64x64 2560", 2, 4096, 2560, steps=50, model="sdxl"),
    Case("sdxl 32x32 5120", 2, 1024, 5120, steps=50, model="sdxl"),
)
