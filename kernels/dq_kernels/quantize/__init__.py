"""quantize: codes of float32 activations, with the tables of each sample's step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dq_kernels.cpu.library import Context
    from dq_kernels.quantize.reference import Quantizer


def supports(q_min: int, q_max: int) -> str:
    """Why the CPU kernel does not take codes of this range; empty where it does."""
    from dq_kernels.cpu.codes import range_reason

    return range_reason(q_min, q_max)


def run(
    context: Context, x: NDArray[Any], step: NDArray[Any], quantizer: Quantizer, *, pitch_multiple: int = 1
) -> tuple[NDArray[Any], bool]:
    """Codes of x on the CPU.

    Args:
        context: threads and instruction set.
        x: float32 [batch, rows, channels]; rows may lie apart.
        step: int32 [batch].
        quantizer: of channels first .. first + channels of x.
        pitch_multiple: rows of the codes are as long as the next multiple of it; bytes behind the channels are 0.

    Returns:
        uint8 [batch, rows, pitch], and whether a product x * m is NaN: there the code is unspecified.

    Raises:
        KernelInputError: an array of another dtype, shape or layout, or a step outside of the tables.
    """
    import numpy as np

    from dq_kernels.cpu import codes as checks
    from dq_kernels.cpu.structs import QuantizeArgs

    args, seen = QuantizeArgs(), np.zeros(1, np.int32)
    args.x_pitch = checks.float_array("x", x)
    args.batch, args.rows, channels = x.shape
    args.out, codes = checks.code_output(quantizer, args.batch, args.rows, channels, pitch_multiple)
    args.step = checks.step_vector(step, args.batch, [quantizer])
    args.x, args.nan_seen = x.ctypes.data, seen.ctypes.data
    context.call("quantize", args)
    return codes, bool(seen[0])
