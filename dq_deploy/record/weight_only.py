"""Layers that store their weights in few bits, by blocks, and multiply in float."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dq_deploy.errors import RecordError
from dq_deploy.numerics.arrays import F32
from dq_deploy.record.checks import check_bias, check_module_path, check_scales, require


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightOnlyLayer:
    """One linear layer whose weights are codes with a scale for each block of input channels; activations stay float.

    What is computed, in float32:

        w[n, k] = w_code[n, k] * scale[n, k // block_size]        float32
        y[n]    = sum over k of x[k] * w[n, k] + bias[n]

    Invariants, checked when it is made:

        -2^(weight_bits-1) <= w_code <= 2^(weight_bits-1) - 1
        C_in % block_size == 0,  scale.shape == (C_out, C_in / block_size)

    Attributes:
        name: module path in the diffusers denoiser.
        weight_bits: 2 to 8.
        block_size: input channels that share a scale.
        w_code: int8 [C_out, C_in].
        scale: float32 [C_out, C_in / block_size].
        bias: [C_out] float32 or None.
    """

    name: str
    weight_bits: int
    block_size: int
    w_code: NDArray[np.int8]
    scale: F32
    bias: F32 | None = None

    def __post_init__(self) -> None:
        """Check the invariants above; the message names the layer."""
        try:
            self._check()
        except RecordError as error:
            raise RecordError(f"layer {self.name}: {error}") from error

    def _check(self) -> None:
        check_module_path(self.name)
        code = self.w_code
        require(2 <= self.weight_bits <= 8, f"weight_bits is {self.weight_bits}, expected 2 to 8")
        require(code.dtype == np.int8, f"w_code is {code.dtype}, expected int8")
        require(
            code.ndim == 2 and min(code.shape) >= 1,
            f"w_code has shape {code.shape}, expected [C_out, C_in] with no empty axis",
        )
        require(
            self.block_size >= 1 and code.shape[1] % self.block_size == 0,
            f"block_size is {self.block_size}, expected a divisor of the {code.shape[1]} input channels",
        )
        low, high = -(2 ** (self.weight_bits - 1)), 2 ** (self.weight_bits - 1) - 1
        least, most = int(code.min()), int(code.max())
        require(low <= least and most <= high, f"w_code spans [{least}, {most}], expected [{low}, {high}]")
        expected = (code.shape[0], code.shape[1] // self.block_size)
        require(self.scale.shape == expected, f"scale has shape {self.scale.shape}, expected {expected}")
        check_scales("scale", self.scale)
        check_bias(self.bias, code.shape[0])
        require(self.bias is None or self.bias.ndim == 1, "bias differs by step, expected one row")

    @property
    def in_channels(self) -> int:
        """Input features."""
        return int(self.w_code.shape[1])

    @property
    def out_channels(self) -> int:
        """Output features."""
        return int(self.w_code.shape[0])

    def weight(self) -> F32:
        """The float weight that is multiplied: w_code * scale, float32 [C_out, C_in]."""
        blocks = self.w_code.reshape(*self.scale.shape, self.block_size).astype(np.float32)
        blocks *= self.scale[:, :, None]
        return blocks.reshape(self.w_code.shape)
