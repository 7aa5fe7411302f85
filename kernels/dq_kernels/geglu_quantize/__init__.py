"""geglu_quantize: value * gelu(gate), and its codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dq_kernels.cpu.library import Context
    from dq_kernels.quantize.reference import Quantizer


def supports(channels: int) -> str:
    """Why the CPU kernel does not take this shape; it takes all: empty."""
    return "" if channels >= 0 else f"{channels} channels, expected 0 or more"


def run(
    context: Context,
    x: NDArray[Any],
    step: NDArray[Any],
    output: Quantizer | None = None,
    *,
    with_y: bool = True,
    y: NDArray[Any] | None = None,
    pitch_multiple: int = 1,
) -> tuple[NDArray[Any] | None, NDArray[Any] | None, bool]:
    """Y = value * gelu(gate) and its codes on the CPU; the arguments of the reference.

    Args:
        context: threads and instruction set.
        x: float32 [batch, rows, 2 * channels]; rows may lie apart.
        step: int32 [batch].
        output: quantizer of channels of y, or None.
        with_y: whether y is wanted besides the codes.
        y: where it is written; None: a new array.
        pitch_multiple: rows of the codes are as long as the next multiple of it; bytes behind the channels are 0.

    Returns:
        y or None, uint8 [batch, rows, pitch] or None, and the reference's nan_seen.

    Raises:
        KernelInputError: an array of another dtype, shape or layout, or an odd number of channels.
    """
    import numpy as np

    from dq_kernels.cpu import codes as checks
    from dq_kernels.cpu.library import KernelInputError
    from dq_kernels.cpu.structs import GegluQuantizeArgs

    args, seen = GegluQuantizeArgs(), np.zeros(1, np.int32)
    args.x_pitch = checks.float_array("x", x)
    args.batch, args.rows, wide = x.shape
    if wide % 2:
        raise KernelInputError(f"x has {wide} channels, expected values and gates: an even number")
    args.channels, codes = wide // 2, None
    if output is not None:
        args.out, codes = checks.code_output(output, args.batch, args.rows, args.channels, pitch_multiple)
        args.parts = 1
    args.step = checks.step_vector(step, args.batch, [] if output is None else [output])
    if with_y or y is not None:
        y, args.y_pitch = checks.float_output(y, x, (args.batch, args.rows, args.channels))
        args.y = y.ctypes.data
    args.x, args.nan_seen = x.ctypes.data, seen.ctypes.data
    context.call("geglu_quantize", args)
    return y, codes, bool(seen[0])
