"""Launches of the integer products: one kernel, or two where the K loop is split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dq_kernels.cpu.library import KernelInputError
from dq_kernels.gpu.launch.calls import FLOATS, MAX_INDEX, Blank, KernelCall, check_array
from dq_kernels.gpu.launch.float_calls import Workspace
from dq_kernels.gpu.launch.weights import Quantizer, Weights
from dq_kernels.gpu.tune.configurations import ProductConfiguration, fit_to_pitch, splits_for

MAX_PRODUCTS = (1 << 17) - 1
"""Products a sum may have: 128 * 128 * 2^17 is 2^31, where the matrix instructions of sm_80 saturate."""
FINISH_BLOCK = (32, 64)
"""Rows and columns of a tile of `finish_split_kernel`: 16 values a thread of 4 warps."""


@dataclass(frozen=True, kw_only=True)
class Epilogue:
    """What is added to a product and where it goes; arrays are [batch, rows, channels] unless said otherwise.

    Attributes:
        y: float16, bfloat16 or float32 result, or None where accumulators are asked for.
        accumulators: int32 [.., out_channels] canonical sums of c * w_q, or None.
        previous: float sum of the parts before this one, of the shape of y; may be y itself.
        bias: float32 [out_channels], or [steps, out_channels]: a row a step of the quantizer.
        row: float [batch, out_channels or more], added to every row of a sample.
        residual: float array added last.
    """

    y: Any = None
    accumulators: Any = None
    previous: Any = None
    bias: Any = None
    row: Any = None
    residual: Any = None


@dataclass(frozen=True, kw_only=True)
class Window:
    """Where a convolution looks.

    Attributes:
        size: height and width of the codes.
        out_size: of the result.
        stride: down, across.
        padding: rows above, columns to the left.
        dilation: down, across.
    """

    size: tuple[int, int]
    out_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


def int_linear_calls(
    codes: Any,
    weights: Weights,
    quantizer: Quantizer,
    step: Any,
    epilogue: Epilogue,
    *,
    configuration: ProductConfiguration,
    architecture: int,
    workspace: Workspace,
) -> list[KernelCall]:
    """Launches of y = epilogue(codes . w^T) for int8 codes [batch, rows, pitch].

    Raises:
        KernelInputError: an array is of another kind, or the weights have a window.
    """
    if weights.kernel != (1, 1):
        raise KernelInputError(f"weights have a window of {weights.kernel}, expected none; use int_conv2d")
    batch, rows, pitch = check_codes(codes, weights, 3)
    shared = product_arguments(weights, quantizer, step, epilogue, batch, rows)
    shared |= {"codes": codes, "code_pitch": pitch}
    return product_calls("int_linear_kernel", shared, {}, weights, configuration, architecture, workspace)


def int_conv2d_calls(
    codes: Any,
    weights: Weights,
    quantizer: Quantizer,
    step: Any,
    epilogue: Epilogue,
    window: Window,
    *,
    configuration: ProductConfiguration,
    architecture: int,
    workspace: Workspace,
) -> list[KernelCall]:
    """Launches of a convolution of int8 codes [batch, height * width, pitch].

    Raises:
        KernelInputError: an array is of another kind, there are no rows of padding, or the window makes no sense.
    """
    batch, pixels, pitch = check_codes(codes, weights, 3)
    if pixels != window.size[0] * window.size[1]:
        raise KernelInputError(f"codes have {pixels} pixels, expected {window.size[0]} x {window.size[1]}")
    if min(*window.stride, *window.dilation, *window.out_size) < 1 or min(window.padding) < 0:
        raise KernelInputError(f"{window}: expected strides, dilations and sizes from 1 and padding from 0")
    if quantizer.pads is None:
        raise KernelInputError("the quantizer has no rows of padding; make it with pads_pitch")
    check_array("pads", quantizer.pads, ("int8",), (quantizer.steps, pitch))
    rows = window.out_size[0] * window.out_size[1]
    shared = product_arguments(weights, quantizer, step, epilogue, batch, rows)
    shared |= {
        **{"codes": codes, "pads": quantizer.pads, "code_pitch": pitch},
        **{"height": window.size[0], "width": window.size[1], "out_width": window.out_size[1]},
        **{"stride_h": window.stride[0], "stride_w": window.stride[1]},
        **{"pad_top": window.padding[0], "pad_left": window.padding[1]},
        **{"dilation_h": window.dilation[0], "dilation_w": window.dilation[1]},
    }
    taps = {"KERNEL_H": weights.kernel[0], "KERNEL_W": weights.kernel[1]}
    return product_calls("int_conv2d_kernel", shared, taps, weights, configuration, architecture, workspace)


def check_codes(codes: Any, weights: Weights, axes: int) -> tuple[int, int, int]:
    """Batch, rows and pitch of codes.

    Raises:
        KernelInputError: they, or the weights, are of another kind.
    """
    if len(codes.shape) != axes or int(codes.shape[2]) < weights.channels or 0 in codes.shape:
        raise KernelInputError(
            f"codes are {list(codes.shape)}, expected [batch, rows, {weights.channels} or more]; channels come last"
        )
    batch, rows, pitch = (int(length) for length in codes.shape)
    check_array("codes", codes, ("int8",), (batch, rows, pitch))
    taps = weights.kernel[0] * weights.kernel[1]
    if taps * weights.channels > MAX_PRODUCTS:
        found = f"{taps} x {weights.channels}"
        raise KernelInputError(f"{found} products in a sum, expected at most {MAX_PRODUCTS}; split the channels")
    check_array("weights", weights.data, ("int8",), (weights.out_channels, taps, weights.pitch))
    check_array("weight sums", weights.sums, ("int32",), (weights.out_channels,))
    check_array("weight scale", weights.scale, ("float32",), (weights.out_channels,))
    return batch, rows, pitch


def product_arguments(
    weights: Weights, quantizer: Quantizer, step: Any, epilogue: Epilogue, batch: int, rows: int
) -> dict[str, Any]:
    """Arguments of all product kernels but for the codes.

    Raises:
        KernelInputError: an array is of another kind, or neither y nor accumulators are asked for.
    """
    out = weights.out_channels
    check_array("step", step, ("int32",), (batch,))
    if quantizer.scale is None:
        raise KernelInputError("the quantizer has no scale; give it")
    check_array("scale", quantizer.scale, ("float32",), (quantizer.steps,))
    check_array("zero_point", quantizer.zero_point, ("int32",), (quantizer.steps,))
    if epilogue.y is None and epilogue.accumulators is None:
        raise KernelInputError("neither y nor accumulators are asked for; give one of them")
    pitches = {}
    for name, array in (("y", epilogue.y), ("residual", epilogue.residual)):
        pitches[name] = out if array is None else int(array.shape[-1])
        if array is not None:
            check_array(name, array, FLOATS, (batch, rows, max(out, pitches[name])))
    if epilogue.previous is not None:
        check_array("previous", epilogue.previous, FLOATS, (batch, rows, pitches["y"]))
    by_step = epilogue.bias is not None and len(epilogue.bias.shape) == 2
    if epilogue.bias is not None:
        check_array("bias", epilogue.bias, ("float32",), (quantizer.steps, out) if by_step else (out,))
    row_pitch = out if epilogue.row is None else int(epilogue.row.shape[-1])
    if epilogue.row is not None:
        check_array("row", epilogue.row, FLOATS, (batch, max(out, row_pitch)))
    if epilogue.accumulators is not None:
        check_array("accumulators", epilogue.accumulators, ("int32",), (batch, rows, out))
    if batch * rows * out > MAX_INDEX:
        raise KernelInputError(f"{batch} x {rows} x {out} results, at most {MAX_INDEX} are counted; split the batch")
    return {
        **{"weights": weights.data, "weight_scale": weights.scale, "weight_sums": weights.sums},
        **{"scale": quantizer.scale, "zero_point": quantizer.zero_point, "step": step},
        **{"bias": None if by_step else epilogue.bias, "biases": epilogue.bias if by_step else None},
        **{"previous": epilogue.previous, "row": epilogue.row},
        **{"residual": epilogue.residual, "y": epilogue.y, "accumulators": epilogue.accumulators},
        **{"total_rows": batch * rows, "rows": rows, "out_channels": out, "weight_pitch": weights.pitch},
        **{"row_pitch": row_pitch, "residual_pitch": pitches["residual"], "y_pitch": pitches["y"]},
        **{"steps": quantizer.steps, "q_min": quantizer.q_min},
    }


SUMS_OF_EPILOGUE = 64
"""Of a thread, that an epilogue finishes at once."""
FINISH_ARGUMENTS = (
    *("scale", "zero_point", "step", "weight_scale", "weight_sums", "previous", "bias", "biases", "row"),
    *(
        "residual",
        "y",
        "accumulators",
        "total_rows",
        "rows",
        "out_channels",
        "row_pitch",
        "residual_pitch",
        "y_pitch",
        "steps",
        "q_min",
    ),
)


def parts_of(configuration: ProductConfiguration) -> int:
    """Parts of a tile's columns that the epilogue goes over: with more sums a thread what it loads would spill."""
    sums = configuration.block_m * configuration.block_n // (32 * configuration.warps)
    return max(1, sums // SUMS_OF_EPILOGUE)


def product_calls(
    kernel: str,
    arguments: dict[str, Any],
    taps: dict[str, int],
    weights: Weights,
    configuration: ProductConfiguration,
    architecture: int,
    workspace: Workspace,
) -> list[KernelCall]:
    """The kernel alone, or with `finish_split_kernel` behind it."""
    configuration = fit_to_pitch(configuration, weights.pitch)
    m, n, block_k = arguments["total_rows"], arguments["out_channels"], configuration.block_k
    steps = weights.kernel[0] * weights.kernel[1] * -(-weights.pitch // block_k)
    splits = splits_for(configuration, architecture, m, n, steps)
    partial = workspace(Blank((splits * m * n,), "int32")) if splits > 1 else None
    if splits * m * n > MAX_INDEX:
        raise KernelInputError(f"{splits} parts of {m} x {n} sums, at most {MAX_INDEX} are counted; split the batch")
    covered = weights.pitch * (2 if weights.bits == 4 else 1)
    constants = {
        **taps,
        "WEIGHT_BITS": weights.bits,
        "WEIGHTS_FIRST": configuration.weights_first,
        "EVEN": weights.pitch % block_k == 0 and arguments["code_pitch"] >= covered,
        **{"BLOCK_M": configuration.block_m, "BLOCK_N": configuration.block_n, "BLOCK_K": block_k},
        "GROUP_M": configuration.group_m,
        "PARTS": parts_of(configuration),
    }
    grid = (-(-m // configuration.block_m) * -(-n // configuration.block_n), splits, 1)
    first = KernelCall(
        kernel=kernel,
        grid=grid,
        arguments={**arguments, "partial": partial},
        constants=constants,
        warps=configuration.warps,
        stages=configuration.stages,
    )
    if splits == 1:
        return [first]
    block_m, block_n = FINISH_BLOCK
    last = KernelCall(
        kernel="finish_split_kernel",
        grid=(-(-m // block_m), -(-n // block_n), 1),
        arguments={"partial": partial, **{name: arguments[name] for name in FINISH_ARGUMENTS}, "splits": splits},
        constants={"BLOCK_M": block_m, "BLOCK_N": block_n},
        warps=4,
        stages=1,
    )
    return [first, last]
