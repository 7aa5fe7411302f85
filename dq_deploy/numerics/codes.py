"""What is done to codes around the integer layer: requantization, shifting, packing, and the pair bound."""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from dq_deploy.errors import InputError, RecordError
from dq_deploy.numerics.arrays import F32, I32
from dq_deploy.numerics.layer import ACCUMULATOR_LIMIT, per_channel, per_sample, rne, table_at


def requantize(
    y: F32,
    *,
    out_scale: F32,
    out_zero_point: I32,
    step: NDArray[np.integer],
    q_min: int = 0,
    q_max: int = 255,
) -> I32:
    """Output codes of the declared requantization: clamp(rne(y / out_s[t]) + out_z[t], q_min, q_max).

    Raises:
        InputError: y holds NaN.
    """
    if np.isnan(y).any():
        raise InputError("output to requantize holds NaN, expected finite numbers; a NaN has no code")
    s = per_sample(table_at(out_scale, step), y.ndim)
    z = per_sample(table_at(out_zero_point, step), y.ndim).astype(np.float32)
    with np.errstate(over="ignore"):
        codes: I32 = np.clip(rne((y / s).astype(np.float32)) + z, q_min, q_max).astype(np.int32)
    return codes


def bias_codes(bias: F32, *, scale: F32, weight_scale: F32) -> I32:
    """The bias in units of the accumulator: rne(b / (s * s_w)), clamped to int32.

    Args:
        bias: [C_out] float32, or [..., C_out], one for each of the scales, of which there may then be one alone.
        scale: [...] float32 activation scales.
        weight_scale: [C_out] float32.

    Returns:
        [..., C_out] int32.
    """
    unit = (np.asarray(scale)[..., None] * weight_scale).astype(np.float32).astype(np.float64)
    return np.clip(np.rint(bias / unit), -(2**31) + 1, 2**31 - 1).astype(np.int32)


def requantize_accumulator(
    accumulator: I32,
    *,
    bias: F32 | None,
    scale: F32,
    weight_scale: F32,
    out_scale: F32,
    out_zero_point: I32,
    step: NDArray[np.integer],
    channel_axis: int = 1,
) -> I32:
    """Output codes of mode fast, straight from the accumulator.

    The formula is::

        M[n]   = (s[t] * s_w[n]) / out_s[t]                        float32
        q[n]   = clamp(rne((A[n] + b_q[n]) * M[n]), -out_z, 255 - out_z) + out_z

    with b_q of `bias_codes`: the declared requantization as QLinearConv computes it.

    Args:
        accumulator: [B, ...] int32, output channels on `channel_axis`.
        bias: [C_out] float32, or [T, C_out] by step, or None.
        scale: [T] or [1] float32.
        weight_scale: [C_out] float32.
        out_scale: [T] or [1] float32.
        out_zero_point: [T] or [1] int32, 0..255.
        step: [B] bucket of each sample.
        channel_axis: axis of the output channels.
    """
    s = table_at(scale, step)
    total = accumulator.astype(np.int64)
    shape = [len(total)] + [1] * (total.ndim - 1)
    shape[channel_axis] = len(weight_scale)
    if bias is not None:
        bias = table_at(bias, step) if bias.ndim == 2 else bias
        total = total + bias_codes(bias, scale=s, weight_scale=weight_scale).reshape(shape)
    unit = (s[:, None] * weight_scale[None, :]).astype(np.float32)
    multiplier = (unit / table_at(out_scale, step)[:, None]).astype(np.float32).reshape(shape)
    z = per_sample(table_at(out_zero_point, step), total.ndim).astype(np.float32)
    scaled = (total.astype(np.float32) * multiplier).astype(np.float32)
    codes: I32 = (np.clip(rne(scaled), -z, 255 - z) + z).astype(np.int32)
    return codes


def dequantize(codes: I32, *, scale: F32, zero_point: I32, step: NDArray[np.integer]) -> F32:
    """(q - z[t]) * s[t] in float32, the inverse of `requantize`."""
    s = per_sample(table_at(scale, step), codes.ndim)
    z = per_sample(table_at(zero_point, step), codes.ndim)
    y: F32 = ((codes - z).astype(np.float32) * s).astype(np.float32)
    return y


def shifted_accumulator(accumulator: I32, q_weight: NDArray[np.integer], offset: int, channel_axis: int) -> I32:
    """What an engine accumulates that holds c + offset: A + offset * sum_k w_q[n, k].

    The sum runs over every weight of the output channel, so padding must hold the code `offset`.
    """
    sums = q_weight.reshape(q_weight.shape[0], -1).sum(axis=1, dtype=np.int64)
    shifted = accumulator.astype(np.int64) + per_channel(offset * sums, accumulator.ndim, channel_axis)
    if np.abs(shifted).max(initial=0) >= ACCUMULATOR_LIMIT:
        raise RecordError(f"codes shifted by {offset} overflow int32; expected a smaller offset or fewer bits")
    result: I32 = shifted.astype(np.int32)
    return result


def pack_nibbles(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two codes of [-8, 7] a byte, the first in the low four bits; an odd count ends with a zero code."""
    flat = np.asarray(codes).reshape(-1)
    if flat.size and (flat.min() < -8 or flat.max() > 7):
        raise RecordError(f"codes span [{flat.min()}, {flat.max()}], expected [-8, 7] to pack two a byte")
    nibble = flat.astype(np.int8, copy=False).view(np.uint8) & 0xF
    if nibble.size % 2:
        nibble = np.append(nibble, np.uint8(0))
    return (nibble[0::2] | (nibble[1::2] << 4)).astype(np.uint8)


def unpack_nibbles(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.int8]:
    """Inverse of `pack_nibbles` for a known shape.

    Raises:
        RecordError: another number of bytes than the shape needs, or a spare nibble that is not 0.
    """
    count = prod(shape)
    flat = np.asarray(packed, np.uint8).reshape(-1)
    if flat.size != (count + 1) // 2:
        raise RecordError(f"packed codes hold {flat.size} bytes, expected {(count + 1) // 2} for shape {shape}")
    if count % 2 and flat[-1] >> 4:
        raise RecordError(f"packed codes end with the spare nibble {flat[-1] >> 4}, expected 0")
    nibble = np.empty(flat.size * 2, np.uint8)
    nibble[0::2] = flat & 0xF
    nibble[1::2] = flat >> 4
    nibble ^= 8  # two's complement of four bits: (n ^ 8) - 8
    nibble -= 8
    return nibble[:count].view(np.int8).reshape(shape)


def worst_pair_product(q_weight: NDArray[np.integer], code_max: int) -> int:
    """Largest sum of two adjacent unsigned-by-signed products along K, over every channel.

    An engine that adds u8 x s8 pairs in int16 is exact only when this is at most 32767. K is taken in
    (kh, kw, C_in) and in (C_in, kh, kw) order and every pairing offset: the answer holds for either layout.
    """
    w = np.abs(q_weight.astype(np.int64))
    orders = [w.reshape(w.shape[0], -1)]
    if w.ndim == 4:
        orders.append(w.transpose(0, 2, 3, 1).reshape(w.shape[0], -1))
    worst = 0
    for rows in orders:
        if rows.shape[1] == 1:
            worst = max(worst, int(rows.max(initial=0)))
        else:
            worst = max(worst, int((rows[:, 1:] + rows[:, :-1]).max(initial=0)))
    return code_max * worst
