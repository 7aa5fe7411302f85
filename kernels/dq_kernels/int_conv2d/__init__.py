"""The integer convolution: float32 results of 8-bit codes and 8-bit or 4-bit weights, channels last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dq_kernels.arrays import Floats, Ints

if TYPE_CHECKING:
    from dq_kernels.cpu.library import Context


def supports(
    weights: NDArray[Any],
    *,
    q_min: int,
    q_max: int,
    zero_point: Any,
    padded: bool = True,
    groups: int = 1,
    weight_zero: Ints | None = None,
) -> str:
    """Why the CPU kernel cannot take a convolution, "" where it can.

    Args:
        weights: integers w_q [out_channels, kernel_h, kernel_w, channels].
        q_min: smallest activation code.
        q_max: largest activation code.
        zero_point: of each step.
        padded: whether a window may leave the image.
        groups: of the convolution.
        weight_zero: int32 [out_channels], taken from each weight; None for zeros.
    """
    from dq_kernels.int_linear.arguments import unsupported

    ends = {"q_min": q_min, "q_max": q_max, "zero_point": zero_point}
    return unsupported(weights, **ends, padded=padded, groups=groups, weight_zero=weight_zero)


def packing_span(*, q_min: int, q_max: int, zero_point: Any, padded: bool = True) -> int:
    """`code_span` to pack a convolution's weights with: q_max - q_min, or a zero code above it that padding stores."""
    from dq_kernels.int_linear.arguments import code_span

    return code_span(q_min=q_min, q_max=q_max, zero_point=zero_point, padded=padded)


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
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    out_size: tuple[int, int] | None = None,
    weight_zero: Ints | None = None,
    packed: NDArray[np.uint8] | None = None,
) -> tuple[Floats, Ints]:
    """Result y and the canonical accumulators, as `reference.int_conv2d` gives them.

    Args:
        context: threads and instruction set.
        codes: uint8 [batch, height, width, channels or more].
        weights: int8 [out_channels, kernel_h, kernel_w, channels].
        scale: float32 [steps].
        zero_point: int32 [steps].
        q_min: smallest code.
        q_max: largest code.
        step: int32 [batch].
        weight_scale: float32 [out_channels].
        bias: float32 [out_channels], or [steps, out_channels]: a row a step.
        row: float32 [batch, out_channels].
        residual: float32 [batch, out_height, out_width, out_channels].
        previous: of the same shape.
        stride: down, across.
        padding: above, to the left.
        dilation: down, across.
        out_size: out_height, out_width; None takes the padding for that of the bottom and the right, too.
        weight_zero: int32 [out_channels], taken from each weight where w_q does not fit int8; None for zeros.
        packed: the weights packed by this context before, to spare packing them.

    Raises:
        KernelInputError: an array has another dtype or shape, or `supports` gives a reason.
    """
    from dq_kernels.cpu import structs
    from dq_kernels.cpu.library import KernelInputError
    from dq_kernels.int_linear import arguments

    if codes.ndim != 4 or weights.ndim != 4:
        raise KernelInputError(f"codes are {codes.shape} and weights {weights.shape}, expected 4 axes each")
    if min(*stride, *dilation) < 1:
        raise KernelInputError(f"stride is {stride} and dilation {dilation}, expected 1 or more")
    (batch, height, width, _), (out_channels, kernel_h, kernel_w, channels) = codes.shape, weights.shape
    out_h, out_w = out_size or (
        (height + 2 * padding[0] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1,
        (width + 2 * padding[1] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1,
    )
    window = zip((out_h, out_w), stride, padding, dilation, (kernel_h, kernel_w), strict=True)
    reach = [(o - 1) * s - p + d * (k - 1) for o, s, p, d, k in window]
    padded = max(padding) > 0 or reach[0] >= height or reach[1] >= width
    reason = supports(weights, q_min=q_min, q_max=q_max, zero_point=zero_point, padded=padded, weight_zero=weight_zero)
    if reason:
        raise KernelInputError(f"{reason}: use the reference, or another engine, for this layer")
    arguments.check("step", step, np.int32, (batch,))
    codes = arguments.codes_of_pitch(codes, channels)
    if packed is None:
        span = packing_span(q_min=q_min, q_max=q_max, zero_point=zero_point, padded=padded)
        packed = context.pack(weights.reshape(out_channels, kernel_h * kernel_w, channels), span, weight_zero)
    extras = {"bias": bias, "row": row, "residual": residual, "previous": previous}
    shape = (batch, out_h, out_w, out_channels)
    epilogue, y, accumulators = arguments.epilogue(shape, weight_scale, extras, len(scale))
    args = structs.IntConv2dArgs(
        **{"codes": codes.ctypes.data, "weights": packed.ctypes.data, "step": step.ctypes.data},
        **{"batch": batch, "height": height, "width": width, "channels": channels, "code_pitch": codes.shape[-1]},
        **{"out_channels": out_channels, "out_height": out_h, "out_width": out_w},
        **{"kernel_h": kernel_h, "kernel_w": kernel_w, "stride_h": stride[0], "stride_w": stride[1]},
        **{"pad_top": padding[0], "pad_left": padding[1], "dilation_h": dilation[0], "dilation_w": dilation[1]},
        quantizer=arguments.quantizer(scale=scale, zero_point=zero_point, q_min=q_min, q_max=q_max, step=step),
        epilogue=epilogue,
    )
    context.call("int_conv2d", args)
    return y, accumulators
