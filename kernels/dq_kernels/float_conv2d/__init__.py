"""Convolutions that stay in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dq_kernels.arrays import Floats

if TYPE_CHECKING:
    from dq_kernels.cpu.library import Context


def run(
    context: Context,
    x: Floats,
    weights: Floats,
    bias: Floats | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Floats:
    """Channels-last convolution, float32 [batch, out_height, out_width, out_channels].

    Args:
        context: threads and instruction set; the result does not depend on the threads.
        x: contiguous float32 [batch, height, width, channels].
        weights: contiguous float32 [out_channels, kernel_h, kernel_w, channels / groups].
        bias: contiguous float32 [out_channels].
        stride: down and across.
        padding: top, bottom, left, right, by zeros.
        dilation: down and across.
        groups: of channels.

    Raises:
        KernelInputError: another dtype, shape or layout, or a window larger than the padded image.
    """
    from dq_kernels.cpu import structs
    from dq_kernels.cpu.library import KernelInputError

    for name, array, axes in (("x", x, 4), ("weights", weights, 4), ("bias", bias, 1)):
        if array is None:
            continue
        if array.dtype != np.float32 or array.ndim != axes or array.size == 0 or not array.flags.c_contiguous:
            raise KernelInputError(
                f"{name} is {array.dtype} {array.shape}, expected contiguous float32 with {axes} axes, channels last"
            )
    batch, height, width, channels = x.shape
    out, kernel_h, kernel_w, per_group = weights.shape
    if groups < 1 or out % groups or per_group * groups != channels:
        raise KernelInputError(f"weights are {weights.shape} for {channels} channels in {groups} groups")
    if bias is not None and bias.shape != (out,):
        raise KernelInputError(f"bias is {bias.shape}, expected ({out},)")
    if min(*stride, *dilation) < 1 or min(padding) < 0:
        raise KernelInputError(f"stride {stride}, dilation {dilation}, padding {padding}: expected 1, 1 and 0 or more")
    top, bottom, left, right = padding
    out_height = (height + top + bottom - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    out_width = (width + left + right - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    if out_height < 1 or out_width < 1:
        raise KernelInputError(f"the window {kernel_h}x{kernel_w} does not fit into {height}x{width} with its padding")
    y = np.empty((batch, out_height, out_width, out), np.float32)
    args = structs.FloatConv2dArgs(
        x=x.ctypes.data,
        weights=weights.ctypes.data,
        bias=None if bias is None else bias.ctypes.data,
        y=y.ctypes.data,
        **{"batch": batch, "height": height, "width": width, "channels": channels, "out_channels": out},
        **{"out_height": out_height, "out_width": out_width, "x_pitch": channels, "y_pitch": out},
        **{"kernel_h": kernel_h, "kernel_w": kernel_w, "stride_h": stride[0], "stride_w": stride[1]},
        **{"pad_top": top, "pad_left": left, "dilation_h": dilation[0], "dilation_w": dilation[1]},
        conv_groups=groups,
    )
    context.call("float_conv2d", args)
    return y
