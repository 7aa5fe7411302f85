"""Device functions of the float side: rounding, fixed-point statistics, SiLU, GELU, codes.

Compile with `enable_fp_fusion=False`: every product and sum is rounded on its own. Integers of a statistic are summed
as int64, so that no block size, no order and no number of programs changes a bit.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
MIN_EXPONENT = tl.constexpr(-90)
ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23
WHOLE = tl.constexpr(8388608.0)  # 2^23: floats from here on are integers


@triton.jit
def round_small(v):
    """Nearest integer, ties to even, of |v| <= 2^22."""
    return (v + ROUND) - ROUND


@triton.jit
def round_half_even(v):
    """Nearest integer, ties to even, of any float32 but NaN."""
    whole = tl.where(v < 0, -WHOLE, WHOLE)
    return tl.where(tl.abs(v) < WHOLE, (v + whole) - whole, v)


@triton.jit
def nearest_integer(v):
    """int32 nearest integer, ties to even, of |v| <= 2^30: one instruction, as the machine converts to 32 bits.

    A conversion to 64 bits is a quarter of its rate on data-centre GPUs and far less on others.
    """
    if INTERPRETED:
        return round_half_even(v).to(tl.int32)
    else:
        asm: tl.constexpr = "cvt.rni.s32.f32 $0, $1;"
        return tl.inline_asm_elementwise(asm, "=r,r", [v], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def power_of_two(exponent):
    """2^exponent as float32, -126 <= exponent <= 127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def power_of_two_64(exponent):
    """2^exponent as float64, -1022 <= exponent <= 1023."""
    return ((exponent + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)


@triton.jit
def exponent_of(peak):
    """Exponent e with peak < 2^e as frexp gives it, at least -90; -90 of an infinity."""
    e = (peak.to(tl.int32, bitcast=True) >> 23) - 126
    e = tl.where(e > 128, MIN_EXPONENT, e)
    return tl.maximum(e, MIN_EXPONENT)


@triton.jit
def fixed_point(x, e):
    """int64 rne(x * 2^(30 - e)) of |x| < 2^e, which is at most 2^30."""
    return nearest_integer(x * power_of_two(30 - e)).to(tl.int64)


@triton.jit
def halves(v, scaled):
    """High and low 15 bits of int32 rne(v * scaled), |v * scaled| <= 2^30: v = 2^15 * high + low, 0 <= low < 2^15.

    Up to 2^15 of each are summed in int32, half the registers and instructions of sums in int64.
    """
    q = nearest_integer(v * scaled)
    return q >> 15, q & 32767


@triton.jit
def joined(high, low):
    """int64 of the sums of `halves`."""
    return high.to(tl.int64) * 32768 + low.to(tl.int64)


@triton.jit
def squares(x, mean, e2):
    """int64 rne(t * t) of t = (x - mean) * 2^(15 - e2), which is at most 2^15 in size."""
    t = (x - mean) * power_of_two(15 - e2)
    return nearest_integer(t * t).to(tl.int64)


@triton.jit
def is_finite(x):
    """Neither NaN nor an infinity."""
    return (x.to(tl.int32, bitcast=True) & 0x7F800000) != 0x7F800000


@triton.jit
def exp32(v):
    """e^v, v clamped to [-87, 88]: argument reduction by ln 2 in two parts and a polynomial of degree 5."""
    v = tl.minimum(tl.maximum(v, -87.0), 88.0)
    n = round_small(v * 1.44269504)
    r = v - n * 0.693359375
    r = r - n * -2.12194440e-4
    p = 1.9875691500e-4 * r + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    e = p * (r * r) + r
    e = e + 1.0
    return e * power_of_two(n.to(tl.int32))


@triton.jit
def silu(y):
    """Y / (1 + exp32(-y))."""
    return tl.div_rn(y, 1.0 + exp32(-y))


@triton.jit
def gelu(g):
    """G * 0.5 * erfc(-g / sqrt 2), erfc by a Chebyshev fit of relative error 1.2e-7."""
    z = tl.abs(g) * 0.70710678
    t = tl.div_rn(1.0, 1.0 + 0.5 * z)
    p = t * 0.17087277 + -0.82215223
    p = p * t + 1.48851587
    p = p * t + -1.13520398
    p = p * t + 0.27886807
    p = p * t + -0.18628806
    p = p * t + 0.09678418
    p = p * t + 0.37409196
    p = p * t + 1.00002368
    h = t * exp32((-(z * z) - 1.26551223) + t * p)
    return g * (0.5 * tl.where(g >= 0, 2.0 - h, h))


@triton.jit
def bucket_of(step, sample, steps):
    """Row of the step tables for a sample or a block of them; static tables have row 0 for every bucket."""
    return tl.minimum(tl.load(step + sample), steps - 1)


@triton.jit
def write_codes(y, rows, row_fits, channel, stored, sample, rows_of_sample, step, part):
    """Store int8 codes of a block y[rows, channel] of one sample, and zeros behind the part's last channel.

    Columns that are not `stored` are left alone. `part` holds (codes, pre, inverse_scale, zero_point, steps, first,
    channels, pitch, q_min, q_max), codes None for none. Returns where the product of a value and its multiplier is NaN.
    """
    codes, pre, inverse_scale, zero_point, steps, first, channels, pitch, q_min, q_max = part
    bad = (y != y) & row_fits[:, None]
    if codes is not None:
        t = bucket_of(step, sample, steps)
        own = channel - first
        inside = (own >= 0) & (own < channels)
        m = tl.load(pre + own, mask=inside, other=0.0) * tl.load(inverse_scale + t)
        zero = tl.load(zero_point + t)
        v = y * m[None, :]
        low = (q_min - zero).to(tl.float32)
        high = (q_max - zero).to(tl.float32)
        # not `nearest_integer`: with it more values wait in registers, 93 against 80 in geglu
        c = round_small(tl.minimum(tl.maximum(v, low), high))
        u = c.to(tl.int32) + (zero - q_min - 128)
        u = tl.where(inside[None, :], u, 0).to(tl.int8)
        fits = row_fits[:, None] & (stored & (own >= 0) & (own < pitch))[None, :]
        to = codes + sample.to(tl.int64) * rows_of_sample * pitch
        tl.store(to + rows[:, None] * pitch + own[None, :], u, mask=fits)
        bad = (v != v) & (inside & stored)[None, :] & row_fits[:, None]
    return bad


@triton.jit
def write_tail(rows, row_fits, sample, rows_of_sample, part, TAIL: tl.constexpr):
    """Store the zeros behind a part's last channel, at most TAIL of them."""
    codes, _, _, _, _, _, channels, pitch, _, _ = part
    if codes is not None:
        column = channels + tl.arange(0, TAIL)
        to = codes + sample.to(tl.int64) * rows_of_sample * pitch
        fits = row_fits[:, None] & (column < pitch)[None, :]
        place = rows[:, None] * pitch + column[None, :]
        tl.store(to + place, tl.zeros(place.shape, tl.int8), mask=fits)


@triton.jit
def flag(nan_seen, bad):
    """Set the flag where anything is bad; programs that find nothing write nothing."""
    if nan_seen is not None:
        tl.store(nan_seen + tl.zeros(bad.shape, tl.int32), tl.full(bad.shape, 1, tl.int32), mask=bad)
