"""The integer linear layer: float32 results of 8-bit codes and 8-bit or 4-bit weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dq_kernels.arrays import Floats, Ints

if TYPE_CHECKING:
    from dq_kernels.cpu.library import Context


def supports(weights: NDArray[Any], *, q_min: int, q_max: int, zero_point: Any, weight_zero: Ints | None = None) -> str:
    """Why the CPU kernel cannot take a layer of integer weights [out_channels, channels], "" where it can."""
    from dq_kernels.int_linear.arguments import unsupported

    return unsupported(weights, q_min=q_min, q_max=q_max, zero_point=zero_point, weight_zero=weight_zero)


def run(
    context: Context,
    codes: NDArray[np.uint8],
    weights: NDArray[np.int8],
    *,
    scale: Floats,
    zero_point: Ints,
    q_min: int,
    q_max: int,
    step: Ints,
    weight_scale: Floats,
    bias: Floats | None = None,
    row: Floats | None = None,
    residual: Floats | None = None,
    previous: Floats | None = None,
    weight_zero: Ints | None = None,
    packed: NDArray[np.uint8] | None = None,
) -> tuple[Floats, Ints]:
    """Result y and the canonical accumulators, as `reference.int_linear` gives them.

    Args:
        context: threads and instruction set.
        codes: uint8 [batch, rows, channels or more].
        weights: int8 [out_channels, channels].
        scale: float32 [steps].
        zero_point: int32 [steps].
        q_min: smallest code.
        q_max: largest code.
        step: int32 [batch].
        weight_scale: float32 [out_channels].
        bias: float32 [out_channels], or [steps, out_channels]: a row a step.
        row: float32 [batch, out_channels].
        residual: float32 [batch, rows, out_channels].
        previous: float32 [batch, rows, out_channels].
        weight_zero: int32 [out_channels], taken from each weight where w_q does not fit int8; None for zeros.
        packed: the weights packed by this context before, to spare packing them.

    Raises:
        KernelInputError: an array has another dtype or shape, or `supports` gives a reason.
    """
    from dq_kernels.int_linear import arguments

    quantizer: dict[str, Any] = {"scale": scale, "zero_point": zero_point, "q_min": q_min, "q_max": q_max, "step": step}
    layer: dict[str, Any] = {"weight_scale": weight_scale, "weight_zero": weight_zero, "packed": packed}
    extras = {"bias": bias, "row": row, "residual": residual, "previous": previous}
    args, y, accumulators, _kept = arguments.linear(context, codes, weights, **quantizer, **layer, extras=extras)
    context.call("int_linear", args)
    return y, accumulators
