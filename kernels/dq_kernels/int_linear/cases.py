"""Shapes and inputs the integer linear layer is tested and measured with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

EXTRAS = ("bias", "row", "residual", "previous")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One linear layer; `inputs` are the arguments of the reference.

    Attributes:
        name: unique.
        zero: where the zero points lie: "low" (0 codes below), "high", or "mid" (differing by step).
        extreme: every code and weight is at an end of its range, with the signs that give the largest sums.
        weight_zero: the range of the weights' zero points, None where they have none.
        extras: which of `EXTRAS` the epilogue adds.
        bias_by_step: the bias has a row a step.
        model: the network the shape is from, "" for those of the tests.
    """

    name: str
    batch: int = 1
    rows: int = 1
    channels: int
    out_channels: int
    activation_bits: int = 8
    weight_bits: int = 4
    steps: int = 1
    zero: str = "mid"
    extreme: bool = False
    weight_zero: tuple[int, int] | None = None
    extras: tuple[str, ...] = ("bias",)
    bias_by_step: bool = False
    seed: int = 0
    model: str = ""

    @property
    def macs(self) -> int:
        """Products of a code and a weight."""
        return self.batch * self.rows * self.channels * self.out_channels

    def inputs(self) -> dict[str, Any]:
        """Arguments of `reference.int_linear`, codes as uint8."""
        rng = np.random.default_rng(self.seed)
        result = quantizer_inputs(self, rng)
        result["codes"] = code_array(
            self, rng, (self.batch, self.rows, self.channels), result["q_max"] - result["q_min"]
        )
        result["weights"] = weight_array(self, rng, (self.out_channels, self.channels))
        return result | epilogue_inputs(self, rng, (self.rows,)) | zero_inputs(self, rng)


def quantizer_inputs(case: Any, rng: np.random.Generator) -> dict[str, Any]:
    """scale, zero_point, q_min, q_max and step of a case; the samples of a batch are at different steps."""
    q_min, q_max = -(2 ** (case.activation_bits - 1)), 2 ** (case.activation_bits - 1) - 1
    ends = {"low": q_min, "high": q_max}
    points = rng.integers(q_min, q_max + 1, case.steps) if case.zero == "mid" else np.full(case.steps, ends[case.zero])
    step = (np.arange(case.batch) * 7 + 1) % case.steps if case.steps > 1 else np.arange(case.batch)
    return {
        "scale": rng.uniform(1e-3, 3e-2, case.steps).astype(np.float32),
        "zero_point": points.astype(np.int32),
        "q_min": q_min,
        "q_max": q_max,
        "step": step.astype(np.int32),
    }


def code_array(case: Any, rng: np.random.Generator, shape: tuple[int, ...], span: int) -> Any:
    """Stored uint8 codes."""
    return np.full(shape, span, np.uint8) if case.extreme else rng.integers(0, span + 1, shape).astype(np.uint8)


def weight_array(case: Any, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """int8 weights; at the extremes the even output channels are all smallest, the odd ones all largest."""
    low, high = -(2 ** (case.weight_bits - 1)), 2 ** (case.weight_bits - 1) - 1
    if not case.extreme:
        return rng.integers(low, high + 1, shape).astype(np.int8)
    ends = np.where(np.arange(shape[0]) % 2 == 0, low, high).reshape(-1, *([1] * (len(shape) - 1)))
    return np.ascontiguousarray(np.broadcast_to(ends, shape)).astype(np.int8)


def zero_inputs(case: Any, rng: np.random.Generator) -> dict[str, Any]:
    """weight_zero of a case that has it."""
    if case.weight_zero is None:
        return {}
    low, high = case.weight_zero
    return {"weight_zero": rng.integers(low, high + 1, case.out_channels).astype(np.int32)}


def epilogue_inputs(case: Any, rng: np.random.Generator, pixels: tuple[int, ...]) -> dict[str, Any]:
    """weight_scale and the extras of a case, None for those it has not."""
    full = (case.batch, *pixels, case.out_channels)
    bias = (case.steps, case.out_channels) if case.bias_by_step else (case.out_channels,)
    shapes = {"bias": bias, "row": (case.batch, case.out_channels), "residual": full, "previous": full}
    result: dict[str, Any] = {"weight_scale": rng.uniform(1e-3, 1e-1, case.out_channels).astype(np.float32)}
    for name, shape in shapes.items():
        result[name] = rng.standard_normal(shape).astype(np.float32) if name in case.extras else None
    return result


TEST_CASES = (
    Case(name="one of each", channels=1, out_channels=1),
    Case(name="odd channels", batch=3, rows=5, channels=33, out_channels=5, steps=3, extras=EXTRAS),
    Case(name="time embedding", batch=3, rows=1, channels=70, out_channels=96, steps=5, seed=1),
    Case(name="8 bits", batch=2, rows=19, channels=70, out_channels=33, weight_bits=8, steps=4, extras=EXTRAS, seed=2),
    Case(
        name="bias by step",
        batch=5,
        rows=7,
        channels=40,
        out_channels=70,
        steps=3,
        extras=EXTRAS,
        bias_by_step=True,
        seed=10,
    ),
    Case(name="5 bits", rows=13, channels=129, out_channels=17, weight_bits=5, seed=3),
    Case(name="6-bit activations", rows=9, channels=64, out_channels=48, activation_bits=6, weight_bits=6, seed=4),
    Case(name="4 by 4 bits", rows=16, channels=100, out_channels=32, activation_bits=4, zero="low", seed=5),
    Case(name="extreme 4", rows=7, channels=300, out_channels=34, extreme=True, zero="low", seed=6),
    Case(name="extreme 8", rows=7, channels=300, out_channels=34, weight_bits=8, extreme=True, zero="low", seed=7),
    Case(
        name="extreme 8 high", rows=7, channels=300, out_channels=34, weight_bits=8, extreme=True, zero="high", seed=8
    ),
    Case(
        name="many rows", batch=2, rows=261, channels=40, out_channels=70, steps=2, extras=("bias", "residual"), seed=9
    ),
)
"""Small and awkward ones."""

ZERO_CASES = (
    Case(name="zeros", batch=2, rows=19, channels=70, out_channels=33, weight_bits=8, steps=4, weight_zero=(-128, 127)),
    Case(name="zeros of one", channels=1, out_channels=1, weight_bits=8, weight_zero=(300, 300), extras=EXTRAS),
    Case(name="zeros of 4 bits", rows=9, channels=33, out_channels=40, weight_zero=(-140, 135), extras=EXTRAS, seed=1),
    Case(name="far zeros", rows=7, channels=300, out_channels=34, weight_bits=8, weight_zero=(-9000, 9000), seed=2),
    Case(
        name="extreme zeros",
        rows=7,
        channels=300,
        out_channels=34,
        weight_bits=8,
        weight_zero=(127, 127),
        extreme=True,
        zero="low",
    ),
    Case(
        name="many rows, zeros",
        batch=2,
        rows=261,
        channels=1030,
        out_channels=70,
        weight_bits=8,
        steps=2,
        weight_zero=(-200, 200),
        seed=3,
    ),
)
"""Weights with zero points, which the CPU kernels take and the GPU's do not."""

SHAPE_CASES = tuple(
    Case(name=f"{model} {rows}x{channels}->{out}", rows=rows, channels=channels, out_channels=out, model=model, seed=11)
    for model, rows, channels, out in (
        ("cifar", 1, 128, 512),
        ("cifar", 1, 512, 512),
        ("cifar", 1, 512, 256),
        ("cifar", 256, 256, 256),
        ("sd15", 1, 320, 1280),
        ("sd15", 4096, 320, 320),
        ("sd15", 4096, 320, 2560),
        ("sd15", 4096, 1280, 320),
        ("sd15", 1024, 640, 5120),
        ("sd15", 256, 1280, 10240),
        ("sd15", 77, 768, 1280),
        ("sdxl", 4096, 640, 640),
        ("sdxl", 4096, 640, 5120),
        ("sdxl", 1024, 1280, 10240),
        ("sdxl", 1024, 5120, 1280),
        ("sdxl", 77, 2048, 1280),
    )
)
"""Layers of the CIFAR-10 DDPM UNet, of Stable Diffusion 1.5 and of SDXL, for one sample."""

CASES = TEST_CASES + SHAPE_CASES
