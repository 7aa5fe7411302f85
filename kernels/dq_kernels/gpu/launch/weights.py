"""Weights and tables in the order the GPU kernels read them, in numpy; `launch` moves them to a device.

int8: [out_channels, taps, pitch], pitch the channels rounded up to 16, zeros behind the last channel.
int4: the same with two weights a byte, pitch = 16 * ceil(channels / 32) bytes: byte j of a row holds channel j in its
low nibble and channel j + pitch in its high one. So a block of bytes unpacks into two whole blocks of channels with a
shift and two masks, whatever the block size: packed weights do not depend on the configuration of a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dq_kernels.arrays import Array
from dq_kernels.cpu.library import KernelInputError

ALIGNMENT = 16
"""Bytes of the widest load; rows of weights begin at multiples of it."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of a layer, arrays of numpy or of a device.

    Attributes:
        data: int8 [out_channels, taps, pitch].
        sums: int32 [out_channels], sum of w_q over taps and channels.
        scale: float32 [out_channels].
        bits: 8 or 4, how they are kept.
        kernel: height and width of the window, 1 x 1 for a linear layer.
        channels: input channels.
    """

    data: Any
    sums: Any
    scale: Any
    bits: int
    kernel: tuple[int, int]
    channels: int

    @property
    def out_channels(self) -> int:
        """Output channels."""
        return int(self.data.shape[0])

    @property
    def pitch(self) -> int:
        """Bytes of one row."""
        return int(self.data.shape[2])

    @property
    def arrays(self) -> dict[str, Any]:
        """The three arrays by their names."""
        return {"data": self.data, "sums": self.sums, "scale": self.scale}


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """Activation quantizer of one part, arrays of numpy or of a device; tables have a row a step, one if static.

    Attributes:
        pre: float32 [channels], or None where only products read it.
        inverse_scale: float32 [steps], likewise.
        scale: float32 [steps], or None where only codes are made with it.
        zero_point: int32 [steps].
        pads: int8 [steps, channels]: rows of the stored code of c = 0, what a convolution reads outside the image;
            or None.
        q_min: smallest code before the zero point is taken off.
        q_max: largest one.
        first: channel of the tensor where the part begins.
    """

    pre: Any = None
    inverse_scale: Any = None
    scale: Any = None
    zero_point: Any
    pads: Any = None
    q_min: int
    q_max: int
    first: int = 0

    @property
    def steps(self) -> int:
        """Rows of the tables."""
        return int(self.zero_point.shape[0])

    @property
    def arrays(self) -> dict[str, Any]:
        """The arrays that are there, by their names."""
        names = ("pre", "inverse_scale", "scale", "zero_point", "pads")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def make_quantizer(
    *,
    zero_point: Array,
    q_min: int,
    q_max: int,
    pre: Array | None = None,
    inverse_scale: Array | None = None,
    scale: Array | None = None,
    first: int = 0,
    pads_pitch: int = 0,
) -> Quantizer:
    """A checked quantizer of numpy arrays.

    Args:
        zero_point: int32 [steps].
        q_min: smallest code.
        q_max: largest code.
        pre: float32 [channels].
        inverse_scale: float32 [steps].
        scale: float32 [steps].
        first: channel where the part begins.
        pads_pitch: pitch of the codes a convolution reads, to make the rows of padding; 0 for none.

    Raises:
        KernelInputError: a table of another type or length, more than 256 codes, a zero code outside -128 .. 127
            where padding is asked for, or a zero point so far off that float32 rounds it.
    """
    steps = len(zero_point)
    for name, array, dtype, length in (
        ("zero_point", zero_point, np.int32, steps),
        ("inverse_scale", inverse_scale, np.float32, steps),
        ("scale", scale, np.float32, steps),
        ("pre", pre, np.float32, None),
    ):
        if array is not None and (array.dtype != dtype or array.ndim != 1 or length not in (None, len(array))):
            wanted = f"{np.dtype(dtype).name} [{'channels' if length is None else length}]"
            raise KernelInputError(f"{name} is {array.dtype} {list(array.shape)}, expected {wanted}; convert it")
    if not 0 < q_max - q_min <= 255:
        raise KernelInputError(f"codes from {q_min} to {q_max}, expected 2 to 256 of them; use 8 bits or fewer")
    span = np.abs(np.array([q_min, q_max])[:, None] - zero_point.astype(np.int64)).max(initial=0)
    if span >= 1 << 22:
        raise KernelInputError(f"a zero point is {span} from the codes, expected less than 2^22; check the tables")
    return Quantizer(
        pre=pre,
        inverse_scale=inverse_scale,
        scale=scale,
        zero_point=zero_point,
        pads=pad_rows(zero_point, q_min, pads_pitch) if pads_pitch else None,
        q_min=q_min,
        q_max=q_max,
        first=first,
    )


def pad_rows(zero_point: Array, q_min: int, pitch: int) -> Array:
    """int8 [steps, pitch] of the stored code of c = 0.

    Raises:
        KernelInputError: that code is outside int8.
    """
    codes = zero_point.astype(np.int64) - q_min - 128
    if codes.min() < -128 or codes.max() > 127:
        raise KernelInputError(
            f"stored zero codes reach from {codes.min()} to {codes.max()}, expected -128 to 127 where a convolution "
            "pads; use zero points within the range of the codes"
        )
    return np.repeat(codes.astype(np.int8)[:, None], pitch, axis=1)


def make_weights(weights: Array, scale: Array, *, bits: int) -> Weights:
    """Packed weights of numpy arrays.

    Args:
        weights: int8 [out_channels, channels] or [out_channels, kernel_h, kernel_w, channels].
        scale: float32 [out_channels].
        bits: 8 or 4, how to keep them.

    Raises:
        KernelInputError: another type or shape, or a weight that 4 bits do not hold.
    """
    if weights.dtype != np.int8 or weights.ndim not in (2, 4) or 0 in weights.shape:
        found = f"{weights.dtype} {list(weights.shape)}"
        raise KernelInputError(f"weights are {found}, expected int8 [out, channels] or [out, kh, kw, channels]")
    if scale.dtype != np.float32 or scale.shape != weights.shape[:1]:
        raise KernelInputError(f"scale is {scale.dtype} {list(scale.shape)}, expected float32 [{len(weights)}]")
    if bits not in (4, 8):
        raise KernelInputError(f"bits is {bits}, expected 8 or 4: how the weights are kept")
    kernel = (int(weights.shape[1]), int(weights.shape[2])) if weights.ndim == 4 else (1, 1)
    rows = np.ascontiguousarray(weights).reshape(len(weights), kernel[0] * kernel[1], weights.shape[-1])
    sums = rows.sum((1, 2), dtype=np.int64).astype(np.int32)
    data = pack_int4(rows) if bits == 4 else pack_int8(rows)
    return Weights(data=data, sums=sums, scale=scale, bits=bits, kernel=kernel, channels=int(weights.shape[-1]))


def pack_int8(rows: Array) -> Array:
    """int8 [out, taps, channels] with zeros up to a multiple of 16 channels."""
    pad = -rows.shape[2] % ALIGNMENT
    return np.pad(rows, ((0, 0), (0, 0), (0, pad)))


def int4_pitch(channels: int) -> int:
    """Bytes of a row of int4 weights."""
    return ALIGNMENT * -(-channels // (2 * ALIGNMENT))


def pack_int4(rows: Array) -> Array:
    """int8 [out, taps, int4_pitch] of int8 [out, taps, channels] in -8 .. 7; see this module's docstring.

    Raises:
        KernelInputError: a weight is out of range.
    """
    if rows.min() < -8 or rows.max() > 7:
        raise KernelInputError(
            f"weights reach from {rows.min()} to {rows.max()}, expected -8 to 7; keep them in 8 bits"
        )
    half = int4_pitch(rows.shape[2])
    padded = np.pad(rows, ((0, 0), (0, 0), (0, 2 * half - rows.shape[2]))).view(np.uint8)
    return ((padded[:, :, :half] & 15) | (padded[:, :, half:] << 4)).view(np.int8)


def unpack_int4(packed: Array, channels: int) -> Array:
    """Inverse of `pack_int4`."""
    signed = packed.view(np.int8)
    low = (signed << 4).astype(np.int8) >> 4
    return np.concatenate([low, signed >> 4], axis=2)[:, :, :channels]


def pack_int4_torch(rows: Any) -> Any:
    """`pack_int4` of a torch tensor, on its device; the range is the caller's to know."""
    import torch

    half = int4_pitch(rows.shape[2])
    padded = torch.nn.functional.pad(rows, (0, 2 * half - rows.shape[2])).view(torch.uint8)
    return ((padded[:, :, :half] & 15) | (padded[:, :, half:] << 4)).view(torch.int8)
