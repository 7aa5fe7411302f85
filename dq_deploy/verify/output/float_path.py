"""The float operations between the layers: the float module fed with the engine's own layer outputs.

A comparison of layers begins at each layer's input, so a wrong operation between two layers would pass it; comparing
only the final output would show it, but quantizers amplify the last bit of a float, and the fault has no name. Here
the torch module runs in float64 with every quantized layer replaced by what the engine's layer gave. No quantizer is
left, so each layer's input must agree as far as float rounding goes: the bound of that comes along with every tensor,
see `rounding`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dq_deploy.numerics.arrays import Array

NARROW_FLOOR = {"float32": 0.0, "float16": 1e-2, "bfloat16": 8e-2}
"""Accepted in any case, as a share of a tensor's largest magnitude: what chains of residuals in a narrow type may be
off by where an engine stores them between two operations that the float module does as one."""

LOOSEST = 1e-3
"""Never more is accepted, as a share of a tensor's largest magnitude: a bound carried through a whole denoiser without
a layer in between, as where weights alone are quantized, grows until it says nothing."""

LOOSEST_ATTENTION = 2e-2
"""The same where attention's products take a narrower type than the rest: bfloat16 leaves its result 2^-8 of its range,
and more where scores are large."""

OWN_ERRORS = 4.0
"""But where the float module itself, computed in float32, is off by more, a bound is believed up to so many times that:
rotations by angles of 10^4, as LTX-Video's, lose three digits in every float32."""

OUTPUT = "the output"


@dataclass(frozen=True, kw_only=True)
class FloatTypes:
    """What an engine's float operations compute in, names as of `rounding.UNITS`.

    Attributes:
        operations: all of them.
        attention: what attention's two products take; their sums and the softmax are of `operations`.
    """

    operations: str = "float32"
    attention: str = "float32"

    @property
    def floor(self) -> float:
        """Accepted in any case, as a share of a tensor's largest magnitude."""
        return NARROW_FLOOR[self.operations]

    @property
    def loosest(self) -> float:
        """Never more is accepted, likewise."""
        return LOOSEST if self.attention == self.operations else LOOSEST_ATTENTION


@dataclass(frozen=True, kw_only=True)
class FloatPath:
    """What was found.

    Attributes:
        layers: number of layers whose inputs were compared.
        max_difference: largest difference of an input, as a share of its largest magnitude.
        max_share: largest difference of a value, as a share of what float rounding can make of it; above 1 is a fault.
        inputs: samples compared.
        guessed: operations whose bound was measured and not derived.
        problem: the first layer in execution order whose input differs, in words, or an empty string.
    """

    layers: int
    max_difference: float
    max_share: float
    inputs: int
    guessed: tuple[str, ...]
    problem: str


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far one tensor of the engine is from the float module's.

    Attributes:
        relative: largest difference, as a share of the largest magnitude.
        share: largest difference of a value, as a share of its bound.
        text: where that is and by how much, in words.
    """

    relative: float
    share: float
    text: str


def relative_gap(got: Array, want: Array) -> float:
    """Largest difference as a share of the largest magnitude; infinity where sizes differ or values are NaN."""
    return gap_between(got, want.astype(np.float64), np.ones(want.shape), floor=0.0).relative


def gap_between(
    got: Array, want: Array, allowed: Array, *, floor: float, own_error: float = 0.0, loosest: float = LOOSEST
) -> Gap:
    """How far a tensor is from its reference.

    Args:
        got: the engine's.
        want: float64.
        allowed: bound of each value's difference.
        floor: accepted in any case, as a share of the largest magnitude.
        own_error: largest difference of the float module in float32 from its reference.
        loosest: never more is accepted, as a share of the largest magnitude.
    """
    if got.size != want.size:
        shapes = f"its shape is {list(got.shape)}, the float module's is {list(want.shape)}"
        return Gap(relative=float("inf"), share=float("inf"), text=shapes)
    gap = np.abs(got.reshape(want.shape).astype(np.float64) - want)
    gap = np.nan_to_num(gap, nan=np.inf, posinf=np.inf)
    largest = float(np.abs(want).max(initial=0)) or 1.0
    allowed = np.minimum(np.nan_to_num(allowed, nan=np.inf), max(loosest * largest, OWN_ERRORS * own_error))
    allowed = np.maximum(allowed, floor * largest)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(gap == 0, 0.0, gap / allowed)
    share = np.nan_to_num(share, nan=np.inf, posinf=np.inf)
    if not share.size:
        return Gap(relative=0.0, share=0.0, text="")
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(share)), share.shape))
    text = (
        f"at {at} it is {float(got.reshape(want.shape)[at]):.9g}, expected {float(want[at]):.9g}, and float rounding "
        f"explains {float(allowed[at]):.2g}"
    )
    return Gap(relative=float(gap.max()) / largest, share=float(share[at]), text=text)
