"""Means and deviations of the norms from sums of integers, bit for bit as float64 gives them, hardly with float64.

Every thread of a program computes them, and consumer GPUs (sm_86, 89, 120) have two float64 lanes in a multiprocessor:
there the divisions and the root in float64 took longer than reading the values. Compile with `enable_fp_fusion=False`.
"""

import triton
import triton.language as tl

from dq_kernels.gpu.device.blocks import INTERPRETED, exponent_of, power_of_two, power_of_two_64

DOUBT = tl.constexpr(2.0**-12)
"""Share of half a last place within which a deviation is computed in float64: 14 times what it may be off by."""
RARELY = tl.constexpr("""{
.reg .pred certain;
.reg .f64 a, b;
mov.b32 $0, $1;
setp.eq.s32 certain, $2, 0;
@certain bra DONE;
cvt.rn.f64.s64 a, $3;
mul.rn.f64 a, a, $4;
cvt.rn.f64.s32 b, $5;
div.rn.f64 a, a, b;
add.rn.f64 a, a, $6;
sqrt.rn.f64 a, a;
rcp.rn.f64 a, a;
cvt.rn.f32.f64 $0, a;
DONE:
}""")
"""`rstd_in_float64` where it is asked for, by a branch of each thread: no thread waits for others."""


@triton.jit
def mean_of(total, e, count):
    """float32 total * 2^(e - 30) / count, rounded once: the mean of `count` values whose integers sum to `total`.

    In integers alone: a quotient of 29 bits and its remainder, from which the bits of the float follow. A float64
    quotient that is rounded to float32 is the same number: total < 2^52 and count <= 2^22 keep every quotient that is
    no tie further from one than float64 rounds.
    """
    count = e * 0 + count  # a count of 1 is a constant
    size = tl.abs(total)
    # an estimate that is off by less than 2^-21 of itself, from two halves: conversions from 64 bits are slow
    high, low = (size >> 26).to(tl.int32), (size & 67108863).to(tl.int32)
    share = tl.div_rn(1.0, count.to(tl.float32))
    about = (high.to(tl.float32) * 67108864.0 + low.to(tl.float32)) * share
    # units of 2^-shift: a quotient in [2^28, 2^29], or of float32's least step, 2^-149 = 2^(e - 30 - shift)
    shift = tl.minimum(tl.minimum(tl.maximum(29 - exponent_of(about), 0), 119 + e), 52)
    quotient = (about * power_of_two(shift)).to(tl.int32)
    rest = ((size << shift) - quotient.to(tl.int64) * count).to(tl.int32)
    more = (rest.to(tl.float32) * share).to(tl.int32)
    quotient, rest = quotient + more, rest - more * count
    wrong = tl.where(rest < 0, -1, tl.where(rest >= count, 1, 0))
    quotient, rest = quotient + wrong, rest - wrong * count
    # below 2^24 least steps an integer is the bits of its float; above, the remainder is one more bit to round by
    up = (2 * rest > count) | ((2 * rest == count) & ((quotient & 1) == 1))
    least = (quotient + up.to(tl.int32)).to(tl.float32, bitcast=True)
    exponent = e - 31 - shift
    half = exponent >> 1
    large = (2 * quotient + (rest != 0).to(tl.int32)).to(tl.uint32, bitcast=True).to(tl.float32)  # up to 2^31
    large = large * power_of_two(half) * power_of_two(exponent - half)
    mean = tl.where(quotient < 16777216, least, large)
    return tl.where(total < 0, -mean, mean)


@triton.jit
def rstd_in_float64(total, scale, count, eps):
    """float32 1 / sqrt(variance + eps), in float64 up to the last rounding."""
    return (1.0 / tl.sqrt(total.to(tl.float64) * scale / count + eps)).to(tl.float32)


@triton.jit
def rstd_of(total, e2, count, eps):
    """float32 1 / sqrt(total * 2^(2 * (e2 - 15)) / count + eps), as `rstd_in_float64` rounds it.

    One Newton step from a float32 estimate y: the residual r = 1 - v * y^2 in float64, y * r / 2 in float32. What is
    left of that behind the last addition says how near the result is to a tie. It is off by less than 2^-16.8 last
    places: 3/8 * r^2 with |r| <= 2^-20, three roundings of a correction below 2^-21 of y, float64's own. Only nearer
    than 2^-13 is the whole computed in float64: once in some thousand rows.
    """
    scale = power_of_two_64(2 * (e2 - 15))
    count = e2 * 0 + count  # a count of 1 is a constant
    wide_count = count.to(tl.float64)
    v = total.to(tl.float64) * scale + eps * wide_count  # of all values, so that nothing is divided in float64
    y = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(v.to(tl.float32), count.to(tl.float32))))
    wide = y.to(tl.float64)
    residual = tl.div_rn((wide_count - v * wide * wide).to(tl.float32), count.to(tl.float32))
    correction = y * 0.5 * residual
    rstd = y + correction
    left = tl.abs(correction - (rstd - y))
    bits = rstd.to(tl.int32, bitcast=True)
    half = power_of_two(tl.minimum(tl.maximum((bits >> 23) - 151, -126), 127))
    certain = (rstd > 2.0**-100) & (rstd < 2.0**100) & (tl.abs(correction) < y * 2.0**-21)
    certain &= tl.abs(left - half) > half * DOUBT
    certain &= (bits & 0x7FFFFF) != 0  # a power of two has nearer neighbours below
    if INTERPRETED:
        return tl.where(certain, rstd, rstd_in_float64(total, scale, count, eps))
    else:
        doubt = (~certain).to(tl.int32)
        args = [rstd, doubt, total, scale, count, eps]
        return tl.inline_asm_elementwise(RARELY, "=&f,f,r,l,d,r,d", args, dtype=tl.float32, is_pure=True, pack=1)
