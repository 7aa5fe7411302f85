"""Cases of group_norm_silu_quantize: awkward ones for tests, those of the real models for benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dq_kernels.quantize.cases import buckets, random_quantizer

KINDS = ("normal", "far", "constant", "zero", "tiny", "huge", "denormal", "mixed")
"""What x holds: "far" has mean >> deviation, "mixed" has channels of very different size."""


def values(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Float32 values of one of `KINDS`, channels last."""
    x = rng.standard_normal(shape)
    if kind == "far":
        x = 1000.0 + 0.01 * x
    elif kind == "constant":
        x = np.full(shape, 1.7)
    elif kind == "zero":
        x = np.zeros(shape)
    elif kind == "tiny":
        x = x * 1e-37
    elif kind == "huge":
        x = np.clip(x, -3.3, 3.3) * 5e37
    elif kind == "denormal":
        x = x * 1e-41
    elif kind == "mixed":
        x = x * np.exp2(rng.integers(-30, 10, shape[-1])) + rng.standard_normal(shape[-1])
    return x.astype(np.float32)


@dataclass(frozen=True)
class Case:
    """One call; `inputs` are the arguments of the reference and of `run`.

    Attributes:
        parts: channels of each output's slice, in order; empty: y alone.
        kind: of `KINDS`.
    """

    name: str
    batch: int
    rows: int
    channels: int
    groups: int
    parts: tuple[int, ...] = ()
    silu: bool = True
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
        outputs, first = [], 0
        for channels in self.parts:
            outputs.append(
                random_quantizer(rng, channels, bits=self.bits, steps=self.steps, first=first, zero=self.zero)
            )
            first += channels
        options = {"groups": self.groups, "eps": self.eps, "silu": self.silu}
        return {
            "x": x,
            "step": buckets(self.batch, self.steps),
            "gamma": gamma,
            "beta": beta,
            "outputs": outputs,
            **options,
        }


def _shape(
    model: str, batch: int, side: int, channels: int, *, silu: bool = True, parts: tuple[int, ...] | None = None
) -> Case:
    return Case(
        f"{model} {side}x{side} {channels}{'' if silu else ' no silu'}{' in two' if parts else ''}",
        *(batch, side * side, channels, 32, parts or (channels,)),
        silu=silu,
        steps=100,
        model=model,
        eps=1e-5 if silu else 1e-6,
    )


TEST_CASES = (
    Case("one value", 1, 1, 1, 1, (1,)),
    Case("3 channels, 1 group", 1, 7, 3, 1, (3,), seed=1),
    Case("3 channels, 3 groups, no silu", 1, 9, 3, 3, (3,), silu=False, seed=2),
    Case("5 channels, three steps", 3, 9, 5, 5, (5,), steps=7, seed=3),
    Case("33 channels, 11 groups, 4 bits", 2, 6, 33, 11, (33,), bits=4, steps=3, seed=4),
    Case("70 channels, 7 groups, two parts", 3, 15, 70, 7, (33, 37), steps=5, seed=5),
    Case("70 channels, 35 groups, zero point low", 1, 15, 70, 35, (70,), zero="low", seed=6),
    Case("96 channels, 32 groups, zero point high", 1, 49, 96, 32, (96,), zero="high", seed=7),
    Case("128 channels, 32 groups", 2, 64, 128, 32, (128,), steps=3, seed=8),
    Case("320 channels, two parts, signed", 1, 25, 320, 32, (192, 128), zero="signed", seed=9),
    Case("no codes", 2, 21, 40, 4, seed=10),
    Case("no gamma and beta", 1, 33, 48, 4, (48,), affine=False, seed=11),
    Case("many rows", 1, 2300, 12, 3, (12,), seed=12),
    Case("mean far beyond the deviation", 1, 121, 64, 8, (64,), kind="far", seed=13),
    Case("constant", 1, 17, 24, 4, (24,), kind="constant", seed=14),
    Case("zeros", 1, 17, 24, 4, (24,), kind="zero", seed=15),
    Case("tiny", 1, 17, 24, 4, (24,), kind="tiny", seed=16),
    Case("tiny, eps as small", 1, 17, 24, 4, (24,), kind="tiny", eps=1e-74, seed=17),
    Case("huge", 1, 17, 24, 4, (24,), kind="huge", seed=18),
    Case("denormal", 1, 17, 24, 4, (24,), kind="denormal", eps=1e-75, seed=19),
    Case("channels of very different size", 1, 77, 64, 8, (64,), kind="mixed", seed=20),
)
SHAPE_CASES = (
    *(_shape("cifar", 1, 32, channels) for channels in (128, 256, 384)),
    *(_shape("cifar", 1, 16, channels) for channels in (128, 256, 384, 512)),
    *(_shape("cifar", 1, 8, channels) for channels in (256, 512)),
    *(_shape("cifar", 1, 4, channels) for channels in (256, 512)),
    _shape("cifar", 1, 32, 384, parts=(256, 128)),
    _shape("cifar", 1, 16, 256, silu=False),
    *(_shape("sd15", 2, 64, channels) for channels in (320, 640, 960)),
    *(_shape("sd15", 2, 32, channels) for channels in (320, 640, 1280, 1920)),
    *(_shape("sd15", 2, 16, channels) for channels in (640, 1280, 2560)),
    *(_shape("sd15", 2, 8, channels) for channels in (1280, 2560)),
    _shape("sd15", 2, 64, 640, parts=(320, 320)),
    _shape("sd15", 2, 64, 320, silu=False),
    *(_shape("sdxl", 2, 128, channels) for channels in (320, 640)),
    *(_shape("sdxl", 2, 64, channels) for channels in (320, 640, 1280)),
    *(_shape("sdxl", 2, 32, channels) for channels in (640, 1280, 2560)),
    _shape("sdxl", 2, 64, 640, silu=False),
)
