"""Cases of layer_norm_quantize: awkward ones for tests, those of the real models for benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dq_kernels.group_norm_silu_quantize.cases import values
from dq_kernels.quantize.cases import buckets, random_quantizer


@dataclass(frozen=True)
class Case:
    """One call; `inputs` are the arguments of the reference and of `run`.

    Attributes:
        outputs: (first, channels) of each output; None: one output of all channels.
        kind: of group_norm_silu_quantize.cases.KINDS.
    """

    name: str
    batch: int
    rows: int
    channels: int
    outputs: tuple[tuple[int, int], ...] | None = None
    affine: bool = True
    kind: str = "normal"
    bits: int = 8
    steps: int = 1
    zero: str = "inner"
    eps: float = 1e-5
    seed: int = 0
    model: str = ""

    def inputs(self) -> dict[str, Any]:
        """Arrays and options, made from the seed."""
        rng = np.random.default_rng(self.seed)
        x = values(rng, (self.batch, self.rows, self.channels), self.kind)
        gamma = (rng.standard_normal(self.channels) + 1).astype(np.float32) if self.affine else None
        beta = rng.standard_normal(self.channels).astype(np.float32) if self.affine else None
        slices = ((0, self.channels),) if self.outputs is None else self.outputs
        quantizers = [
            random_quantizer(rng, channels, bits=self.bits, steps=self.steps, first=first, zero=self.zero)
            for first, channels in slices
        ]
        step = buckets(self.batch, self.steps)
        return {"x": x, "step": step, "gamma": gamma, "beta": beta, "outputs": quantizers, "eps": self.eps}


TEST_CASES = (
    Case("one value", 1, 1, 1),
    Case("3 channels", 1, 7, 3, seed=1),
    Case("5 channels, three steps", 3, 9, 5, steps=7, seed=2),
    Case("33 channels, 4 bits", 2, 6, 33, bits=4, steps=3, seed=3),
    Case("70 channels, three consumers", 3, 5, 70, ((0, 70), (0, 70), (11, 43)), steps=5, seed=4),
    Case("70 channels, zero point low", 1, 15, 70, zero="low", seed=5),
    Case("96 channels, zero point high", 1, 49, 96, zero="high", seed=6),
    Case("no codes", 2, 21, 40, (), seed=7),
    Case("no gamma and beta", 1, 33, 48, affine=False, seed=8),
    Case("mean far beyond the deviation", 1, 12, 64, kind="far", seed=9),
    Case("constant", 1, 17, 24, kind="constant", seed=10),
    Case("zeros", 1, 17, 24, kind="zero", seed=11),
    Case("tiny", 1, 17, 24, kind="tiny", eps=1e-74, seed=12),
    Case("huge", 1, 17, 24, kind="huge", seed=13),
    Case("denormal", 1, 17, 24, kind="denormal", eps=1e-75, seed=14),
    Case("channels of very different size", 1, 7, 641, kind="mixed", seed=15),
    Case("long rows, signed", 1, 2, 20000, zero="signed", seed=16),
)
SHAPE_CASES = (
    Case("sd15 64x64 320", 2, 4096, 320, ((0, 320),) * 3, steps=50, model="sd15"),
    Case("sd15 64x64 320 one", 2, 4096, 320, steps=50, model="sd15"),
    Case("sd15 32x32 640", 2, 1024, 640, steps=50, model="sd15"),
    Case("sd15 16x16 1280", 2, 256, 1280, steps=50, model="sd15"),
    Case("sd15 8x8 1280", 2, 64, 1280, steps=50, model="sd15"),
    Case("sdxl 64x64 640", 2, 4096, 640, steps=50, model="sdxl"),
    Case("sdxl 32x32 1280", 2, 1024, 1280, ((0, 1280),) * 3, steps=50, model="sdxl"),
    Case("sdxl 32x32 1280 one", 2, 1024, 1280, steps=50, model="sdxl"),
)
