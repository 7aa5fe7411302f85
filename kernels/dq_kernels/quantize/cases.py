"""Cases of quantize: awkward ones for tests, those of the real models for benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dq_kernels.arrays import Array
from dq_kernels.quantize.reference import Quantizer


def random_quantizer(
    rng: np.random.Generator, channels: int, *, bits: int = 8, steps: int = 1, first: int = 0, zero: str = "inner"
) -> Quantizer:
    """A quantizer for values of about unit spread; some of them fall outside its range.

    Args:
        rng: source of the numbers.
        channels: of the part.
        bits: width of a code.
        steps: rows of the tables.
        first: channel where the part begins.
        zero: "inner" zero points, those at "low" or "high" ends of the range, or "signed" around 0.
    """
    q_min, q_max = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if zero == "signed" else (0, (1 << bits) - 1)
    span = q_max - q_min
    scale = (rng.uniform(4.0, 7.0, steps) / span).astype(np.float32)
    points = {
        "inner": rng.integers(q_min + span // 4, q_max - span // 4 + 1, steps),
        "signed": rng.integers(q_min + span // 4, q_max - span // 4 + 1, steps),
        "low": np.full(steps, q_min),
        "high": np.full(steps, q_max),
    }
    pre = np.exp2(rng.uniform(-1.0, 1.0, channels)).astype(np.float32)
    inverse = (np.float32(1.0) / scale).astype(np.float32)
    return Quantizer(pre, inverse, points[zero].astype(np.int32), q_min, q_max, first)


def buckets(batch: int, steps: int) -> Array:
    """Step buckets of a batch, different from each other where there are as many."""
    return ((np.arange(batch) * 7 + steps - 1) % steps).astype(np.int32)


@dataclass(frozen=True)
class Case:
    """One call of quantize; `inputs` are the arguments of the reference and of `run`."""

    name: str
    batch: int
    rows: int
    channels: int
    bits: int = 8
    steps: int = 1
    zero: str = "inner"
    first: int = 0
    width: int = 0
    seed: int = 0
    model: str = ""

    def inputs(self) -> dict[str, Any]:
        """The arguments; x has `width` channels, 0: as many as the part."""
        rng = np.random.default_rng(self.seed)
        width = self.width or self.channels
        x = (rng.standard_normal((self.batch, self.rows, width)) * 2).astype(np.float32)
        quantizer = random_quantizer(
            rng, self.channels, bits=self.bits, steps=self.steps, first=self.first, zero=self.zero
        )
        return {"x": x, "step": buckets(self.batch, self.steps), "quantizer": quantizer}


TEST_CASES = (
    Case("one value", 1, 1, 1),
    Case("3 channels", 1, 7, 3, seed=1),
    Case("5 channels, three steps", 3, 9, 5, steps=5, seed=2),
    Case("33 channels, 4 bits", 2, 6, 33, bits=4, steps=3, seed=3),
    Case("70 channels, zero point low", 3, 5, 70, steps=4, zero="low", seed=4),
    Case("70 channels, zero point high", 3, 5, 70, steps=4, zero="high", seed=5),
    Case("signed codes", 1, 13, 67, zero="signed", seed=6),
    Case("second part of a wider tensor", 2, 11, 37, first=13, width=53, steps=2, seed=7),
    Case("64 channels", 1, 33, 64, seed=8),
    Case("many rows", 1, 1500, 19, steps=1, seed=9),
)
SHAPE_CASES = (
    Case("cifar 32x32 128", 1, 1024, 128, steps=100, model="cifar"),
    Case("cifar 16x16 256", 1, 256, 256, steps=100, model="cifar"),
    Case("cifar 8x8 256", 1, 64, 256, steps=100, model="cifar"),
    Case("cifar 4x4 512", 1, 16, 512, steps=100, model="cifar"),
    Case("sd15 64x64 320", 2, 4096, 320, steps=50, model="sd15"),
    Case("sd15 32x32 640", 2, 1024, 640, steps=50, model="sd15"),
    Case("sd15 16x16 1280", 2, 256, 1280, steps=50, model="sd15"),
    Case("sd15 text 768", 2, 77, 768, steps=50, model="sd15"),
    Case("sdxl 64x64 640", 2, 4096, 640, steps=50, model="sdxl"),
    Case("sdxl 32x32 1280", 2, 1024, 1280, steps=50, model="sdxl"),
    Case("sdxl text 2048", 2, 77, 2048, steps=50, model="sdxl"),
)
