"""A linear layer whose result only a quantizer reads, and its codes: the result itself is written nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dq_kernels.arrays import Floats, Ints

if TYPE_CHECKING:
    from dq_kernels.cpu.library import Context
    from dq_kernels.quantize.reference import Quantizer

ACTIVATIONS = ("copy", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh", "relu")
"""What may stand between the layer and its codes; `copy` is nothing."""


def supports(isa: str) -> str:
    """Why an instruction set does not take this op, "" where it does.

    Beside matrix tiles the activation takes the time, and in small pieces it takes more.
    """
    from dq_kernels.cpu.structs import EMULATED

    by_tiles = isa in ("amx", EMULATED)
    return (
        f"{isa} multiplies by matrix tiles, which take the layer and its codes one after the other" if by_tiles else ""
    )


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
    output: Quantizer,
    bias: Floats | None = None,
    row: Floats | None = None,
    residual: Floats | None = None,
    weight_zero: Ints | None = None,
    activation: str = "copy",
    gated: bool = False,
    pitch_multiple: int = 1,
) -> tuple[NDArray[np.uint8], bool]:
    """Codes of the result, as `reference.int_linear_codes` gives them.

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
        output: quantizer of channels of the activation's result.
        bias: float32 [out_channels], or [steps, out_channels]: a row a step.
        row: float32 [batch, out_channels].
        residual: float32 [batch, rows, out_channels].
        weight_zero: int32 [out_channels], taken from each weight where w_q does not fit int8; None for zeros.
        activation: of `ACTIVATIONS`.
        gated: the first half of the result times the gelu of the second, in place of `activation`; half of
            out_channels is then a multiple of `structs.GATED_CHANNELS`.
        pitch_multiple: rows of the codes are as long as the next multiple of it; bytes behind the channels are 0.

    Returns:
        uint8 [batch, rows, pitch], and whether a value on the way is NaN: there the code is unspecified.

    Raises:
        KernelInputError: an array has another dtype or shape, or the layer is one that no kernel takes.
    """
    from dq_kernels.cpu import codes as checks
    from dq_kernels.cpu import structs
    from dq_kernels.cpu.library import KernelInputError
    from dq_kernels.int_linear import arguments

    quantizer: dict[str, Any] = {"scale": scale, "zero_point": zero_point, "q_min": q_min, "q_max": q_max, "step": step}
    layer: dict[str, Any] = {"weight_scale": weight_scale, "weight_zero": weight_zero}
    extras = {"bias": bias, "row": row, "residual": residual}
    linear, _, _, _kept = arguments.linear(context, codes, weights, **quantizer, **layer, extras=extras)
    linear.epilogue.y = linear.epilogue.accumulators = None
    out_channels = weights.shape[0]
    wrong = _wrong(context.isa, out_channels, activation, gated)
    if wrong:
        raise KernelInputError(wrong)
    out, result = checks.code_output(
        output, linear.batch, linear.rows, out_channels // 2 if gated else out_channels, pitch_multiple
    )
    checks.step_vector(step, linear.batch, [output])
    seen = np.zeros(1, np.int32)
    args = structs.IntLinearCodesArgs(
        linear=linear,
        nan_seen=seen.ctypes.data,
        activation=structs.ELEMENTWISE_KINDS.index(activation),
        gated=int(gated),
        out=out,
    )
    context.call("int_linear_codes", args)
    return result, bool(seen[0])


def _wrong(isa: str, out_channels: int, activation: str, gated: bool) -> str:
    from dq_kernels.cpu.structs import GATED_CHANNELS

    if supports(isa):
        return f"{supports(isa)}, expected another instruction set"
    if activation not in ACTIVATIONS or (gated and activation != "copy"):
        return f"activation is {activation!r}, expected {'copy' if gated else ', '.join(ACTIVATIONS)}"
    if gated and out_channels % (2 * GATED_CHANNELS):
        wanted = f"twice a multiple of {GATED_CHANNELS}: values, then their gates"
        return f"the layer has {out_channels} output channels, expected {wanted}"
    return ""
