"""Linear layers that stay in float32, and the blocked float product that the other float kernels share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dq_kernels.arrays import Floats

if TYPE_CHECKING:
    from dq_kernels.cpu.library import Context


def run(
    context: Context, x: Floats, weights: Floats, bias: Floats | None = None, *, rows_of_sample: int | None = None
) -> Floats:
    """The product x w^T + bias, float32 [rows, out_channels].

    A row of the result depends neither on the threads nor on the other rows.

    Args:
        context: threads and instruction set.
        x: float32 [rows, channels]; rows may lie apart.
        weights: contiguous float32 [out_channels, channels].
        bias: contiguous float32 [out_channels].
        rows_of_sample: rows that one sample has, which say in what order the products of a row are summed; by default
            all are of one sample.

    Raises:
        KernelInputError: another dtype, shape or layout.
    """
    from dq_kernels.cpu import structs
    from dq_kernels.cpu.library import KernelInputError

    if x.dtype != np.float32 or x.ndim != 2 or x.size == 0 or (x.shape[1] > 1 and x.strides[1] != 4):
        raise KernelInputError(f"x is {x.dtype} {x.shape}, expected float32 [rows, channels] with contiguous rows")
    rows, channels = x.shape
    if weights.dtype != np.float32 or weights.shape[1:] != (channels,) or not weights.flags.c_contiguous:
        wanted = f"contiguous float32 [out_channels, {channels}]"
        raise KernelInputError(f"weights are {weights.dtype} {weights.shape}, expected {wanted}")
    out = weights.shape[0]
    if bias is not None and (bias.dtype != np.float32 or bias.shape != (out,) or not bias.flags.c_contiguous):
        raise KernelInputError(f"bias is {bias.dtype} {bias.shape}, expected contiguous float32 [{out}]")
    y = np.empty((rows, out), np.float32)
    args = structs.FloatLinearArgs(
        x=x.ctypes.data,
        weights=weights.ctypes.data,
        bias=None if bias is None else bias.ctypes.data,
        y=y.ctypes.data,
        rows=rows,
        channels=channels,
        out_channels=out,
        x_pitch=x.strides[0] // 4,
        y_pitch=out,
        rows_of_sample=rows if rows_of_sample is None else rows_of_sample,
    )
    context.call("float_linear", args)
    return y
