"""Codes of activations in numpy, slow and obvious: what the CPU and GPU kernels equal bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dq_kernels.arrays import Array


@dataclass(frozen=True)
class Quantizer:
    """Activation quantizer of one part of the channels; tables have one row a step, or a single row for all.

    Attributes:
        pre: float32 [channels], what a value is multiplied by before its step's scale.
        inverse_scale: float32 [steps], 1 / s.
        zero_point: int32 [steps].
        q_min: smallest code before the zero point is taken off.
        q_max: largest one; q_max - q_min is at most 255.
        first: channel of the tensor where the part begins.
    """

    pre: Array
    inverse_scale: Array
    zero_point: Array
    q_min: int
    q_max: int
    first: int = 0

    @property
    def channels(self) -> int:
        """Channels of the part."""
        return int(self.pre.shape[0])

    def row(self, bucket: int) -> int:
        """Row of the tables for a step bucket: a static quantizer has one for all."""
        return bucket if self.inverse_scale.shape[0] > 1 else 0


def quantize(x: Array, step: Array, quantizer: Quantizer) -> tuple[Array, bool]:
    """Codes u = c + (z - q_min), each 0 .. q_max - q_min.

    Args:
        x: float32 [batch, rows, channels]; the part's own channels of it are read.
        step: int32 [batch], step bucket of each sample.
        quantizer: tables and range.

    Returns:
        uint8 [batch, rows, part channels], and whether a product x * m is NaN: there the code is unspecified.
    """
    part = x[:, :, quantizer.first : quantizer.first + quantizer.channels]
    codes = np.empty(part.shape, np.uint8)
    nan_seen = False
    for b in range(x.shape[0]):
        t = quantizer.row(int(step[b]))
        zero = int(quantizer.zero_point[t])
        low, high = np.float32(quantizer.q_min - zero), np.float32(quantizer.q_max - zero)
        with np.errstate(all="ignore"):
            m = quantizer.pre * quantizer.inverse_scale[t]
            v = part[b] * m
        nan_seen |= bool(np.isnan(v).any())
        v = np.minimum(np.maximum(np.where(np.isnan(v), low, v), low), high)
        c = np.rint(v).astype(np.int64)
        codes[b] = c + (zero - quantizer.q_min)
    return codes, nan_seen


def zero_codes(step: Array, quantizer: Quantizer) -> Array:
    """Stored code of c = 0 for each sample, int32 [batch]; outside 0 .. 255 where 0 is not in the range."""
    zeros = [int(quantizer.zero_point[quantizer.row(int(t))]) - quantizer.q_min for t in step]
    return np.array(zeros, np.int32)


def signed_codes(codes: Array) -> Array:
    """The GPU's form of stored codes: int8 u - 128."""
    return (codes ^ np.uint8(0x80)).view(np.int8)
