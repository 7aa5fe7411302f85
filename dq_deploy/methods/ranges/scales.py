"""Scales and zero points from ranges, and the L2.4 search that shrinks a range."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from dq_deploy.numerics.arrays import F32, F64, I32, I64
from dq_deploy.record.checks import SCALE_MAX, SCALE_MIN

SEARCH_POWER = 2.4
WEIGHT_SEARCH_STEPS = 60
WEIGHT_SEARCH_LOWEST = 0.3
ASYMMETRIC_SEARCH_STEPS = 80
ASYMMETRIC_SEARCH_LOWEST = 0.21
SEARCH_VALUES = 1 << 17
"""Weights searched at a time."""
COARSE_STRIDE = 4
WIDE_ROW = 1200
"""Values of an output channel from which every `COARSE_STRIDE`-th scale is tried first."""
ACTIVATION_SEARCH_STEPS = 24
ACTIVATION_SEARCH_LOWEST = 0.25


def code_range(bits: int, *, symmetric: bool) -> tuple[int, int]:
    """(q_min, q_max) of an activation: 0..2^b-1, or -2^(b-1)..2^(b-1)-1."""
    half = 2 ** (bits - 1)
    return (-half, half - 1) if symmetric else (0, 2 * half - 1)


def weight_range(bits: int) -> tuple[int, int]:
    """Full range of b-bit weight codes."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _safe_scale(scale: F64) -> F32:
    """float32 in the record's allowed range; a range of nothing but zeros gets 1."""
    scale = np.where(scale > 0, scale, 1.0)
    return np.clip(scale, SCALE_MIN * 2, SCALE_MAX / 2).astype(np.float32)


def activation_table(
    low: NDArray[np.floating], high: NDArray[np.floating], *, bits: int, symmetric: bool = False
) -> tuple[F32, I32]:
    """Scale and zero point for ranges [low, high] that are first widened to hold 0.

    Args:
        low: [T] lowest values.
        high: [T] highest values.
        bits: 2 to 8.
        symmetric: zero points 0 and signed codes.

    Returns:
        scale [T] float32 and zero_point [T] int32 with q_min <= z <= q_max.
    """
    lo = np.minimum(np.asarray(low, np.float64), 0)
    hi = np.maximum(np.asarray(high, np.float64), 0)
    q_min, q_max = code_range(bits, symmetric=symmetric)
    if symmetric:
        scale = _safe_scale(np.maximum(hi / q_max, lo / q_min))
        return scale, np.zeros(len(scale), np.int32)
    scale = _safe_scale((hi - lo) / (q_max - q_min))
    zero = np.clip(np.rint(q_min - lo / scale.astype(np.float64)), q_min, q_max)
    return scale, zero.astype(np.int32)


def search_activation_table(
    low: NDArray[np.floating],
    high: NDArray[np.floating],
    values: F32,
    *,
    bits: int,
    symmetric: bool = False,
) -> tuple[F32, I32]:
    """Like `activation_table`, for the shrunk range with the least L2.4 error over some values.

    Args:
        low: [T] lowest values.
        high: [T] highest values.
        values: [T, V] float32, values each table entry will see.
        bits: 2 to 8.
        symmetric: zero points 0 and signed codes.
    """
    q_min, q_max = code_range(bits, symmetric=symmetric)
    best_scale, best_zero = activation_table(low, high, bits=bits, symmetric=symmetric)
    best = np.full(len(best_scale), np.inf)
    for shrink in np.linspace(1.0, ACTIVATION_SEARCH_LOWEST, ACTIVATION_SEARCH_STEPS):
        scale, zero = activation_table(low * shrink, high * shrink, bits=bits, symmetric=symmetric)
        s, z = scale[:, None], zero[:, None].astype(np.float32)
        error = np.clip(np.rint(values / s), q_min - z, q_max - z) * s - values
        cost = (np.abs(error) ** np.float32(SEARCH_POWER)).mean(axis=1, dtype=np.float64)
        better = cost < best
        best = np.where(better, cost, best)
        best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero, best_zero)
    return best_scale.astype(np.float32), best_zero.astype(np.int32)


def full_weight_scale(weight: F32, bits: int) -> F32:
    """The least scale per output channel, [C_out], at which no weight is clipped."""
    low, high = _row_ends(weight)
    q_low, q_high = weight_range(bits)
    return _safe_scale(np.maximum(high / q_high, low / q_low))


def _row_ends(weight: F32) -> tuple[F64, F64]:
    """Least and greatest weight of each output channel."""
    rows = weight.reshape(len(weight), -1)
    return rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)


def full_weight_range(weight: F32, bits: int) -> tuple[F32, I32]:
    """Scale and zero point per output channel whose codes span the least to the greatest weight and 0.

    A zero point within the code range keeps ``code - zero_point`` in int8 up to 7 bits. With 8 bits only zero point 0
    does, so these have none.

    Args:
        weight: [C_out, ...] float32.
        bits: 2 to 8.

    Returns:
        scale [C_out] float32 and zero_point [C_out] int32 with -2^(b-1) <= z <= 2^(b-1) - 1.
    """
    if bits == 8:
        return full_weight_scale(weight, bits), np.zeros(len(weight), np.int32)
    q_low, q_high = weight_range(bits)
    low, high = _row_ends(weight)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = _safe_scale((high - low) / (q_high - q_low))
    zero = np.clip(np.rint(q_low - low / scale.astype(np.float64)), q_low, q_high)
    return scale, zero.astype(np.int32)


def weight_codes(weight: F32, scale: F32, bits: int, zero_point: I32 | None = None) -> NDArray[np.int8]:
    """clamp(rne(w / s_w[n]) + z_w[n]), the division in float32: int8, shape of weight."""
    tail = (1,) * (weight.ndim - 1)
    scaled = (weight / scale.reshape(-1, *tail)).astype(np.float32)
    zero = np.zeros(1, np.float32) if zero_point is None else zero_point.astype(np.float32)
    return np.clip(np.rint(scaled) + zero.reshape(-1, *tail), *weight_range(bits)).astype(np.int8)


def search_weight_scale(weight: F32, bits: int) -> F32:
    """Scale per output channel with the least L2.4 error, [C_out] float32.

    Rows are independent; they are searched in pieces that stay in the processor's cache, on torch's number of threads.
    """
    q_low, q_high = weight_range(bits)
    shrinks = np.linspace(1.0, WEIGHT_SEARCH_LOWEST, WEIGHT_SEARCH_STEPS)
    rows = weight.reshape(len(weight), -1)
    ends = np.broadcast_to(np.array([q_low, q_high], np.float32), (len(rows), 2))
    return _search(rows, full_weight_scale(rows, bits), ends, shrinks)


def search_weight_range(weight: F32, bits: int) -> tuple[F32, I32]:
    """Scale and zero point per output channel with the least L2.4 error among shrunk ranges.

    All ranges of a channel are the same one times a factor, so they share their zero point.

    Args:
        weight: [C_out, ...] float32.
        bits: 2 to 8; 8 bits have zero points 0, see `full_weight_range`.

    Returns:
        scale [C_out] float32 and zero_point [C_out] int32.
    """
    if bits == 8:
        return search_weight_scale(weight, bits), np.zeros(len(weight), np.int32)
    rows = weight.reshape(len(weight), -1)
    scale, zero = full_weight_range(rows, bits)
    ends = (np.array(weight_range(bits), np.float32)[None, :] - zero[:, None]).astype(np.float32)
    shrinks = np.linspace(1.0, ASYMMETRIC_SEARCH_LOWEST, ASYMMETRIC_SEARCH_STEPS)
    return _search(rows, scale, ends, shrinks), zero


def quantized_weight(weight: F32, bits: int, *, asymmetric: bool) -> tuple[NDArray[np.int8], F32, I32 | None]:
    """Codes, scale and zero point (None where symmetric) of a weight, by range search."""
    if not asymmetric:
        scale = search_weight_scale(weight, bits)
        return weight_codes(weight, scale, bits), scale, None
    scale, zero = search_weight_range(weight, bits)
    return weight_codes(weight, scale, bits, zero), scale, zero


def _search(rows: F32, full: F32, ends: F32, shrinks: F64) -> F32:
    """Best of `full` times each of `shrinks` by row; codes before scaling lie within `ends`, [rows, 2]."""
    import torch

    step = max(1, SEARCH_VALUES // rows.shape[1])
    pieces = [slice(start, start + step) for start in range(0, len(rows), step)]
    threads = min(torch.get_num_threads(), len(pieces))

    def search(piece: slice) -> F32:
        return _search_rows(rows[piece], full[piece], ends[piece], shrinks)

    if threads == 1:
        return np.concatenate([search(piece) for piece in pieces])
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(search, pieces)))


def _search_rows(rows: F32, full: F32, ends: F32, shrinks: F64) -> F32:
    """`_search` of some output channels, [rows, values].

    Narrow rows try every scale. Wide ones, whose error is a smooth function of the scale, try every fourth and then
    those beside the best.
    """
    q_low, q_high = ends[:, :1], ends[:, 1:]
    best, chosen = np.full(len(rows), np.inf), np.zeros(len(rows), np.int64)
    work = np.empty_like(rows)

    def try_scales(index: I64) -> None:
        nonlocal best, chosen
        column = _safe_scale(full.astype(np.float64) * shrinks[index])[:, None]
        np.divide(rows, column, out=work)
        np.rint(work, out=work)
        np.clip(work, q_low, q_high, out=work)
        np.multiply(work, column, out=work)
        cost = _cost(work, rows)
        better = cost < best
        best, chosen = np.where(better, cost, best), np.where(better, index, chosen)

    stride = COARSE_STRIDE if rows.shape[1] >= WIDE_ROW else 1
    for index in range(0, len(shrinks), stride):
        if index and index % COARSE_STRIDE == 0:
            # what is clipped only grows as the scale shrinks: a bound no later scale can fall below
            column = _safe_scale(full.astype(np.float64) * shrinks[index])[:, None]
            np.clip(rows, q_low * column, q_high * column, out=work)
            if (_cost(work, rows) > best * 1.001).all():
                break
        try_scales(np.full(len(rows), index, np.int64))
    coarse = chosen
    for offset in range(1, stride):
        for neighbours in (coarse - offset, coarse + offset):
            try_scales(np.clip(neighbours, 0, len(shrinks) - 1))
    return _safe_scale(full.astype(np.float64) * shrinks[chosen])


def _cost(work: F32, rows: F32) -> F64:
    """Mean |work - rows|^2.4 of each row; overwrites `work`."""
    np.subtract(work, rows, out=work)
    np.abs(work, out=work)
    np.power(work, np.float32(SEARCH_POWER), out=work)
    cost: F64 = work.mean(axis=1, dtype=np.float64)
    return cost
