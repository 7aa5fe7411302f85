"""Shapes and inputs the integer convolution is tested and measured with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dq_kernels.int_linear.cases import EXTRAS, code_array, epilogue_inputs, quantizer_inputs, weight_array, zero_inputs


@dataclass(frozen=True, kw_only=True)
class Case:
    """One convolution; `inputs` are the arguments of the reference.

    Attributes:
        name: unique.
        padding: top, left, bottom, right.
        zero: where the zero points lie: "low" (0 codes below), "high", or "mid" (differing by step).
        extreme: every code and weight is at an end of its range, with the signs that give the largest sums.
        weight_zero: the range of the weights' zero points, None where they have none.
        extras: which of `EXTRAS` the epilogue adds.
        model: the network the shape is from, "" for those of the tests.
    """

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
    def out_size(self) -> tuple[int, int]:
        """Height and width of the result."""
        top, left, bottom, right = self.padding
        reach_h = self.dilation[0] * (self.kernel[0] - 1) + 1
        reach_w = self.dilation[1] * (self.kernel[1] - 1) + 1
        return (
            (self.height + top + bottom - reach_h) // self.stride[0] + 1,
            (self.width + left + right - reach_w) // self.stride[1] + 1,
        )

    @property
    def macs(self) -> int:
        """Products of a code and a weight, those with the padding counted too."""
        pixels = self.out_size[0] * self.out_size[1]
        return self.batch * pixels * self.kernel[0] * self.kernel[1] * self.channels * self.out_channels

    def inputs(self) -> dict[str, Any]:
        """Arguments of `reference.int_conv2d`, codes as uint8."""
        rng = np.random.default_rng(self.seed)
        result = quantizer_inputs(self, rng)
        span = result["q_max"] - result["q_min"]
        result["codes"] = code_array(self, rng, (self.batch, self.height, self.width, self.channels), span)
        result["weights"] = weight_array(self, rng, (self.out_channels, *self.kernel, self.channels))
        window = {
            "stride": self.stride,
            "padding": self.padding[:2],
            "dilation": self.dilation,
            "out_size": self.out_size,
        }
        return result | window | epilogue_inputs(self, rng, self.out_size) | zero_inputs(self, rng)


_DOWN = (0, 0, 1, 1)
_NONE = (0, 0, 0, 0)

TEST_CASES = (
    Case(name="one pixel", height=1, width=1, channels=1, out_channels=1),
    Case(name="image to features", batch=3, height=7, width=5, channels=3, out_channels=33, steps=3, extras=EXTRAS),
    Case(name="features to image", height=6, width=9, channels=70, out_channels=3, seed=1),
    Case(name="8 bits", batch=3, height=5, width=7, channels=33, out_channels=40, weight_bits=8, steps=3, seed=2),
    Case(
        name="bias by step",
        batch=4,
        height=5,
        width=7,
        channels=33,
        out_channels=40,
        steps=3,
        extras=("bias", "residual"),
        bias_by_step=True,
        seed=12,
    ),
    Case(name="5 bits", height=5, width=4, channels=36, out_channels=20, weight_bits=5, extras=EXTRAS, seed=3),
    Case(name="7 by 7 bits", height=5, width=5, channels=20, out_channels=18, activation_bits=7, weight_bits=7, seed=4),
    Case(name="down", batch=2, height=8, width=8, channels=36, out_channels=32, stride=(2, 2), padding=_DOWN, seed=5),
    Case(
        name="strange window",
        batch=3,
        height=9,
        width=11,
        channels=5,
        out_channels=7,
        steps=3,
        kernel=(2, 5),
        stride=(3, 1),
        padding=(1, 4, 0, 2),
        dilation=(2, 3),
        extras=EXTRAS,
        seed=6,
    ),
    Case(name="far padding", height=3, width=3, channels=8, out_channels=8, padding=(4, 4, 4, 4), zero="high", seed=7),
    Case(name="1x1", batch=2, height=5, width=5, channels=70, out_channels=66, kernel=(1, 1), padding=_NONE, seed=8),
    Case(name="extreme 4", height=5, width=5, channels=36, out_channels=18, extreme=True, zero="low", seed=9),
    Case(name="extreme 8", height=5, width=5, channels=36, out_channels=18, weight_bits=8, extreme=True, zero="high"),
    Case(
        name="many pixels",
        batch=2,
        height=17,
        width=19,
        channels=12,
        out_channels=65,
        steps=2,
        extras=("bias", "row", "residual"),
        seed=10,
    ),
)
"""Small and awkward ones."""

ZERO_CASES = (
    Case(
        name="zeros",
        batch=3,
        height=5,
        width=7,
        channels=33,
        out_channels=40,
        weight_bits=8,
        steps=3,
        weight_zero=(-128, 127),
    ),
    Case(
        name="zeros of 4 bits", height=5, width=4, channels=36, out_channels=20, weight_zero=(-140, 135), extras=EXTRAS
    ),
    Case(
        name="zeros, strange window",
        batch=3,
        height=9,
        width=11,
        channels=5,
        out_channels=7,
        steps=3,
        weight_bits=8,
        kernel=(2, 5),
        stride=(3, 1),
        padding=(1, 4, 0, 2),
        dilation=(2, 3),
        weight_zero=(-300, 300),
        extras=EXTRAS,
    ),
    Case(
        name="zeros over many blocks",
        height=17,
        width=19,
        channels=530,
        out_channels=36,
        weight_bits=8,
        weight_zero=(-128, 127),
    ),
    Case(
        name="extreme zeros",
        height=5,
        width=5,
        channels=36,
        out_channels=18,
        weight_bits=8,
        weight_zero=(127, 127),
        extreme=True,
        zero="high",
    ),
)
"""Weights with zero points, which the CPU kernels take and the GPU's do not."""

SHAPE_CASES = tuple(
    Case(
        name=f"{model} {size}x{size} {kernel}x{kernel}/{stride} {channels}->{out}",
        height=size,
        width=size,
        channels=channels,
        out_channels=out,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=_NONE if kernel == 1 else (1, 1, 1, 1) if stride == 1 or model != "cifar" else _DOWN,
        model=model,
        seed=11,
    )
    for model, size, kernel, stride, channels, out in (
        ("cifar", 32, 3, 1, 3, 128),
        ("cifar", 32, 3, 1, 128, 128),
        ("cifar", 32, 3, 2, 128, 128),
        ("cifar", 32, 3, 1, 256, 128),
        ("cifar", 32, 1, 1, 256, 128),
        ("cifar", 16, 3, 1, 256, 256),
        ("cifar", 16, 3, 1, 512, 256),
        ("cifar", 16, 1, 1, 512, 256),
        ("cifar", 8, 3, 1, 256, 256),
        ("cifar", 8, 3, 1, 512, 256),
        ("cifar", 4, 3, 1, 256, 256),
        ("cifar", 4, 3, 1, 512, 256),
        ("cifar", 32, 3, 1, 128, 3),
        ("sd15", 64, 3, 1, 320, 320),
        ("sd15", 64, 3, 1, 960, 320),
        ("sd15", 64, 3, 2, 320, 320),
        ("sd15", 32, 3, 1, 640, 640),
        ("sd15", 16, 3, 1, 1280, 1280),
        ("sd15", 16, 3, 1, 2560, 1280),
        ("sd15", 8, 3, 1, 1280, 1280),
        ("sdxl", 128, 3, 1, 320, 320),
        ("sdxl", 64, 3, 1, 640, 640),
        ("sdxl", 32, 3, 1, 1280, 1280),
        ("sdxl", 32, 3, 1, 2560, 1280),
    )
)
"""Layers of the CIFAR-10 DDPM UNet, of Stable Diffusion 1.5 and of SDXL, for one sample."""

CASES = TEST_CASES + SHAPE_CASES
