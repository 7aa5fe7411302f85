"""group_norm_silu_quantize: group norm, SiLU where wanted, and codes for up to three consumers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dq_kernels.cpu.library import Context
    from dq_kernels.quantize.reference import Quantizer

MAX_CHANNELS = 1 << 16
MAX_OUTPUTS = 3


def supports(rows: int, channels: int, groups: int, outputs: int = 1) -> str:
    """Why the CPU kernel does not take this shape; empty where it does."""
    from dq_kernels.group_norm_silu_quantize.reference import MAX_VALUES

    if groups < 1 or channels % groups:
        return f"{channels} channels in {groups} groups, expected groups that divide the channels"
    if channels > MAX_CHANNELS:
        return f"{channels} channels, expected {MAX_CHANNELS} at most"
    if rows * (channels // groups) > MAX_VALUES:
        return f"{rows * (channels // groups)} values in a group, expected {MAX_VALUES} at most: their sum is exact"
    if outputs > MAX_OUTPUTS:
        return f"{outputs} outputs of codes, expected {MAX_OUTPUTS} at most"
    return ""


def run(
    context: Context,
    x: NDArray[Any],
    step: NDArray[Any],
    groups: int,
    eps: float,
    silu: bool = True,
    gamma: NDArray[Any] | None = None,
    beta: NDArray[Any] | None = None,
    outputs: Sequence[Quantizer] = (),
    *,
    with_y: bool = True,
    y: NDArray[Any] | None = None,
    pitch_multiple: int = 1,
) -> tuple[NDArray[Any] | None, list[NDArray[Any]], bool]:
    """Y = act(group_norm(x)) and its codes on the CPU; the arguments of the reference.

    Args:
        context: threads and instruction set.
        x: float32 [batch, rows, channels]; rows may lie apart.
        step: int32 [batch].
        groups: divides channels.
        eps: above 0.
        silu: whether act is SiLU.
        gamma: float32 [channels] or None.
        beta: float32 [channels] or None.
        outputs: quantizers of channels of y.
        with_y: whether y is wanted besides the codes.
        y: where it is written; None: a new array.
        pitch_multiple: rows of the codes are as long as the next multiple of it; bytes behind the channels are 0.

    Returns:
        y or None, uint8 [batch, rows, pitch] of each output, and the reference's nan_seen.

    Raises:
        KernelInputError: an array of another dtype, shape or layout, or a shape that `supports` refuses.
    """
    import numpy as np

    from dq_kernels.cpu import codes as checks
    from dq_kernels.cpu.library import KernelInputError
    from dq_kernels.cpu.structs import GroupNormSiluQuantizeArgs

    args, seen = GroupNormSiluQuantizeArgs(), np.zeros(1, np.int32)
    args.x_pitch = checks.float_array("x", x)
    args.batch, args.rows, args.channels = x.shape
    reason = supports(args.rows, args.channels, groups, len(outputs))
    if reason:
        raise KernelInputError(reason)
    if not eps > 0:
        raise KernelInputError(f"eps is {eps}, expected a number above 0")
    args.groups, args.eps, args.silu, args.parts = groups, eps, int(silu), len(outputs)
    args.gamma = checks.vector("gamma", gamma, args.channels)
    args.beta = checks.vector("beta", beta, args.channels)
    found = [checks.code_output(q, args.batch, args.rows, args.channels, pitch_multiple) for q in outputs]
    for index, (output, _) in enumerate(found):
        args.out[index] = output
    args.step = checks.step_vector(step, args.batch, outputs)
    if with_y or y is not None:
        y, args.y_pitch = checks.float_output(y, x, x.shape)
        args.y = y.ctypes.data
    args.x, args.nan_seen = x.ctypes.data, seen.ctypes.data
    context.call("group_norm_silu_quantize", args)
    return y, [codes for _, codes in found], bool(seen[0])
