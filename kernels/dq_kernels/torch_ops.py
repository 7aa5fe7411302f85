"""The ops as `torch.ops.dq_kernels.*`, eager or traced; importing this module registers them.

Tensors are [batch, rows, channels], or [batch, channels, height, width] in the memory format channels_last; results
have the form of their input. Codes are uint8 on a CPU and int8 (128 less) on a GPU. CPU tensors go to the C++ library,
CUDA tensors to the Triton kernels (never run on a GPU).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dq_kernels.cpu import structs
from dq_kernels.cpu.library import Context, KernelInputError, KernelsMissingError
from dq_kernels.cpu.packed import check_packed
from dq_kernels.int_linear import arguments
from dq_kernels.quantize.reference import Quantizer


@functools.lru_cache
def context_for(threads: int, isa: str | None) -> Context:
    """Threads that all calls of this process share; `isa` None is the best of this CPU."""
    return Context(threads, isa)


def pack_weights(
    weights: Tensor,
    *,
    q_min: int,
    q_max: int,
    zero_point: Tensor,
    padded: bool = False,
    weight_bits: int = 8,
    isa: str | None = None,
) -> Tensor:
    """Weights in the order the kernels of their device read them, as a uint8 tensor.

    Args:
        weights: int8 w_q, [out_channels, channels] or [out_channels, channels, kernel_h, kernel_w].
        q_min: smallest activation code.
        q_max: largest activation code.
        zero_point: int32 [steps] of the activations.
        padded: whether windows leave the image.
        weight_bits: 8 or 4, how a GPU keeps them; a CPU keeps those within 4 bits so by itself.
        isa: instruction set of the CPU to pack for; None is the best there is.

    Raises:
        KernelInputError: a layer the kernels do not take; the message says why.
    """
    if weights.dtype != torch.int8 or weights.dim() not in (2, 4):
        found = f"{weights.dtype} {tuple(weights.shape)}"
        raise KernelInputError(f"weights are {found}, expected int8 [out, in] or [out, in, kernel_h, kernel_w]")
    rows = weights[:, :, None, None] if weights.dim() == 2 else weights
    rows = rows.permute(0, 2, 3, 1).contiguous()
    points = zero_point.cpu().numpy()
    reason = arguments.unsupported(rows.cpu().numpy(), q_min=q_min, q_max=q_max, zero_point=points, padded=padded)
    if reason:
        raise KernelInputError(f"{reason}: keep this layer in float")
    if weights.is_cuda:
        packed: Tensor = _gpu("torch_kernels").pack_weights(rows, weight_bits)
        return packed
    span = arguments.code_span(q_min=q_min, q_max=q_max, zero_point=points, padded=padded)
    context = context_for(torch.get_num_threads(), isa)
    return torch.from_numpy(context.pack(rows.flatten(1, 2).numpy(), span))


def _gpu(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"dq_kernels.gpu.launch.{module}")
    except ImportError as error:
        why = f"the GPU kernels cannot be loaded ({error}); install triton 3.7.1, as dq-deploy[gpu-kernels] does"
        raise KernelsMissingError(why) from error


def rows_of(name: str, x: Tensor) -> Tensor:
    """The same memory as [batch, rows, channels]."""
    if x.dim() == 3 and (x.shape[2] < 2 or x.stride(2) == 1):
        return x
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).contiguous().flatten(1, 2)
    raise KernelInputError(
        f"{name} has shape {tuple(x.shape)} and strides {x.stride()}, expected [batch, rows, channels] with contiguous "
        "channels, or [batch, channels, height, width] in channels_last"
    )


def _numpy_rows(name: str, x: Tensor) -> Any:
    if x.dtype != torch.float32:
        raise KernelInputError(f"{name} is {x.dtype}, expected torch.float32; convert it")
    return rows_of(name, x.detach()).numpy()


def like(x: Tensor, rows: Tensor) -> Tensor:
    """Rows [batch, rows, channels] in the form of x."""
    if x.dim() == 3:
        return rows
    return rows.unflatten(1, (x.shape[2], x.shape[3])).permute(0, 3, 1, 2)


def _empty_like(x: Tensor, channels: Any, dtype: torch.dtype) -> Tensor:
    if x.dim() == 3:
        return x.new_empty((x.shape[0], x.shape[1], channels), dtype=dtype)
    return x.new_empty((x.shape[0], x.shape[2], x.shape[3], channels), dtype=dtype).permute(0, 3, 1, 2)


def _code_type(x: Tensor) -> torch.dtype:
    return torch.int8 if x.device.type == "cuda" else torch.uint8


def _channels(x: Tensor) -> Any:
    return x.shape[2] if x.dim() == 3 else x.shape[1]


def _array(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().numpy()


def _quantizers(
    pre: Sequence[Tensor],
    inverse_scale: Sequence[Tensor],
    zero_point: Sequence[Tensor],
    q_min: Sequence[int],
    q_max: Sequence[int],
    first: Sequence[int],
) -> list[Quantizer]:
    parts = zip(pre, inverse_scale, zero_point, q_min, q_max, first, strict=True)
    return [Quantizer(_array(p), _array(i), _array(z), low, high, at) for p, i, z, low, high, at in parts]


def _best() -> Context:
    return context_for(torch.get_num_threads(), None)


def _results(x: Tensor, codes: Sequence[Any], y: Any, seen: bool) -> list[Tensor]:
    arrays = [torch.from_numpy(array) for array in (*codes, *(() if y is None else (y,)))]
    return [*(like(x, array) for array in arrays), torch.tensor([int(seen)], dtype=torch.int32)]


def _fake_results(x: Tensor, pre: Sequence[Tensor], y_channels: Any) -> list[Tensor]:
    found = [_empty_like(x, p.shape[0], _code_type(x)) for p in pre]
    if y_channels is not None:
        found.append(_empty_like(x, y_channels, x.dtype))
    return [*found, x.new_empty((1,), dtype=torch.int32)]


def _head_of(packed: Tensor, layer: tuple[int, int, int], span: int) -> Any:
    if packed.dtype != torch.uint8 or packed.dim() != 1 or not packed.is_contiguous():
        found = f"{packed.dtype} {tuple(packed.shape)}"
        raise KernelInputError(f"packed weights are {found}, expected the torch.uint8 vector that pack_weights made")
    return check_packed(packed.data_ptr(), packed.numel(), layer, span)


@torch.library.custom_op("dq_kernels::quantize", mutates_args=(), device_types="cpu")
def quantize(
    x: Tensor,
    step: Tensor,
    pre: Tensor,
    inverse_scale: Tensor,
    zero_point: Tensor,
    q_min: int,
    q_max: int,
    first: int = 0,
) -> list[Tensor]:
    """Codes of channels first .. first + len(pre) of x, and nan_seen int32 [1]."""
    from dq_kernels.quantize import run

    (quantizer,) = _quantizers([pre], [inverse_scale], [zero_point], [q_min], [q_max], [first])
    codes, seen = run(_best(), _numpy_rows("x", x), _array(step), quantizer)
    return _results(x, [codes], None, seen)


@quantize.register_fake
def _(
    x: Tensor,
    step: Tensor,
    pre: Tensor,
    inverse_scale: Tensor,
    zero_point: Tensor,
    q_min: int,
    q_max: int,
    first: int = 0,
) -> list[Tensor]:
    return _fake_results(x, [pre], None)


@torch.library.custom_op("dq_kernels::group_norm_silu_quantize", mutates_args=(), device_types="cpu")
def group_norm_silu_quantize(
    x: Tensor,
    step: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    pre: Sequence[Tensor],
    inverse_scale: Sequence[Tensor],
    zero_point: Sequence[Tensor],
    q_min: Sequence[int],
    q_max: Sequence[int],
    first: Sequence[int],
    with_y: bool = False,
) -> list[Tensor]:
    """Codes of each part of y = act(group_norm(x)), y if it is asked for, and nan_seen int32 [1]."""
    from dq_kernels.group_norm_silu_quantize import run

    outputs = _quantizers(pre, inverse_scale, zero_point, q_min, q_max, first)
    rows, norm = _numpy_rows("x", x), (_array(gamma), _array(beta))
    y, codes, seen = run(_best(), rows, _array(step), groups, eps, silu, *norm, outputs, with_y=with_y)
    return _results(x, codes, y, seen)


@group_norm_silu_quantize.register_fake
def _(
    x: Tensor,
    step: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    pre: list[Tensor],
    *tables: Any,
    with_y: bool = False,
) -> list[Tensor]:
    with_y = tables[5] if len(tables) > 5 else with_y
    return _fake_results(x, pre, _channels(x) if with_y else None)


@torch.library.custom_op("dq_kernels::layer_norm_quantize", mutates_args=(), device_types="cpu")
def layer_norm_quantize(
    x: Tensor,
    step: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    pre: Sequence[Tensor],
    inverse_scale: Sequence[Tensor],
    zero_point: Sequence[Tensor],
    q_min: Sequence[int],
    q_max: Sequence[int],
    first: Sequence[int],
    with_y: bool = False,
) -> list[Tensor]:
    """Codes of each part of y = layer_norm(x) over the channels, y if it is asked for, and nan_seen int32 [1]."""
    from dq_kernels.layer_norm_quantize import run

    outputs = _quantizers(pre, inverse_scale, zero_point, q_min, q_max, first)
    rows, norm = _numpy_rows("x", x), (_array(gamma), _array(beta))
    y, codes, seen = run(_best(), rows, _array(step), eps, *norm, outputs, with_y=with_y)
    return _results(x, codes, y, seen)


@layer_norm_quantize.register_fake
def _(
    x: Tensor,
    step: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    pre: list[Tensor],
    *tables: Any,
    with_y: bool = False,
) -> list[Tensor]:
    with_y = tables[5] if len(tables) > 5 else with_y
    return _fake_results(x, pre, _channels(x) if with_y else None)


@torch.library.custom_op("dq_kernels::geglu_quantize", mutates_args=(), device_types="cpu")
def geglu_quantize(
    x: Tensor,
    step: Tensor,
    pre: Tensor,
    inverse_scale: Tensor,
    zero_point: Tensor,
    q_min: int,
    q_max: int,
    with_y: bool = False,
) -> list[Tensor]:
    """Codes of y = value * gelu(gate), value the first half of x's channels, y if asked for, and nan_seen int32 [1]."""
    from dq_kernels.geglu_quantize import run

    (quantizer,) = _quantizers([pre], [inverse_scale], [zero_point], [q_min], [q_max], [0])
    y, codes, seen = run(_best(), _numpy_rows("x", x), _array(step), quantizer, with_y=with_y)
    return _results(x, [codes], y, seen)


@geglu_quantize.register_fake
def _(
    x: Tensor,
    step: Tensor,
    pre: Tensor,
    inverse_scale: Tensor,
    zero_point: Tensor,
    q_min: int,
    q_max: int,
    with_y: bool = False,
) -> list[Tensor]:
    return _fake_results(x, [pre], _channels(x) // 2 if with_y else None)


def _code_rows(codes: Tensor, channels: int) -> Any:
    if codes.dtype != torch.uint8:
        raise KernelInputError(f"codes are {codes.dtype}, expected torch.uint8 on a CPU")
    return arguments.codes_of_pitch(rows_of("codes", codes).numpy(), channels)


def _product(op: str, args: Any, packed: Tensor, tables: Any, extras: Any, padded: bool) -> Tensor:
    """Run int_linear or int_conv2d on args that lack quantizer, weights and epilogue; y as [batch, rows, out]."""
    (scale, points, step, weight_scale), (low, high) = map(_array, tables[:4]), tables[4:]
    if padded and (points.min() < low or points.max() > low + 255):
        raise KernelInputError(f"zero points are {points.min()} to {points.max()}, padding takes {low} to {low + 255}")
    positions = args.kernel_h * args.kernel_w if op == "int_conv2d" else 1
    span = arguments.code_span(q_min=low, q_max=high, zero_point=points, padded=padded)
    head = _head_of(packed, (args.out_channels, positions, args.channels), span)
    arguments.check("step", step, np.int32, (args.batch,))
    rows = args.rows if op == "int_linear" else args.out_height * args.out_width
    bias, row, *wide = extras
    wide = [None if x is None else np.ascontiguousarray(_numpy_rows("residual or previous", x)) for x in wide]
    added = dict(zip(("bias", "row", "residual", "previous"), (_array(bias), _array(row), *wide), strict=True))
    args.epilogue, y, _ = arguments.epilogue((args.batch, rows, args.out_channels), weight_scale, added, len(scale))
    args.epilogue.accumulators = None
    args.quantizer = arguments.quantizer(scale=scale, zero_point=points, q_min=low, q_max=high, step=step)
    args.weights, args.step = packed.data_ptr(), step.ctypes.data
    context_for(torch.get_num_threads(), structs.ISAS[head.isa]).call(op, args)
    return torch.from_numpy(y)


@torch.library.custom_op("dq_kernels::int_linear", mutates_args=(), device_types="cpu")
def int_linear(
    codes: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    step: Tensor,
    weight_scale: Tensor,
    q_min: int,
    q_max: int,
    bias: Tensor | None = None,
    row: Tensor | None = None,
    residual: Tensor | None = None,
    previous: Tensor | None = None,
    weight_bits: int = 8,
) -> Tensor:
    """float32 of codes times weights of `pack_weights`, with bias, row, residual and previous added."""
    held = _code_rows(codes, _channels(codes))
    args = structs.IntLinearArgs(
        codes=held.ctypes.data,
        batch=held.shape[0],
        rows=held.shape[1],
        channels=_channels(codes),
        code_pitch=held.shape[2],
        out_channels=weight_scale.shape[0],
    )
    tables = (scale, zero_point, step, weight_scale, q_min, q_max)
    return like(codes, _product("int_linear", args, packed, tables, (bias, row, residual, previous), False))


@int_linear.register_fake
def _(
    codes: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    step: Tensor,
    weight_scale: Tensor,
    *_rest: Any,
    **_named: Any,
) -> Tensor:
    return _empty_like(codes, weight_scale.shape[0], torch.float32)


@torch.library.custom_op("dq_kernels::int_conv2d", mutates_args=(), device_types="cpu")
def int_conv2d(
    codes: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    step: Tensor,
    weight_scale: Tensor,
    q_min: int,
    q_max: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    bias: Tensor | None = None,
    row: Tensor | None = None,
    residual: Tensor | None = None,
    previous: Tensor | None = None,
    weight_bits: int = 8,
) -> Tensor:
    """`int_linear` over windows of [batch, channels, height, width]; padding is top, bottom, left, right."""
    if codes.dim() != 4 or min(*kernel, *stride, *dilation) < 1 or min(padding) < 0:
        windows = f"kernel {list(kernel)}, stride {list(stride)}, dilation {list(dilation)}, padding {list(padding)}"
        raise KernelInputError(
            f"codes have {codes.dim()} axes, {windows}: expected 4 axes, padding 0 or more, others 1"
        )
    height, width = out_size(codes, kernel, stride, padding, dilation)
    if height < 1 or width < 1:
        raise KernelInputError(f"the window {list(kernel)} does not fit into {tuple(codes.shape[2:])} with its padding")
    held = _code_rows(codes, codes.shape[1])
    args = structs.IntConv2dArgs(
        **{"codes": held.ctypes.data, "batch": codes.shape[0], "height": codes.shape[2], "width": codes.shape[3]},
        **{"channels": codes.shape[1], "code_pitch": held.shape[2], "out_channels": weight_scale.shape[0]},
        **{"out_height": height, "out_width": width, "kernel_h": kernel[0], "kernel_w": kernel[1]},
        **{"stride_h": stride[0], "stride_w": stride[1], "pad_top": padding[0], "pad_left": padding[2]},
        **{"dilation_h": dilation[0], "dilation_w": dilation[1]},
    )
    tables = (scale, zero_point, step, weight_scale, q_min, q_max)
    y = _product("int_conv2d", args, packed, tables, (bias, row, residual, previous), max(padding) > 0)
    return y.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def out_size(codes: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any) -> tuple[Any, Any]:
    """Height and width of a convolution's result."""
    return (
        (codes.shape[2] + padding[0] + padding[1] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1,
        (codes.shape[3] + padding[2] + padding[3] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1,
    )


@int_conv2d.register_fake
def _(
    codes: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    step: Tensor,
    weight_scale: Tensor,
    q_min: int,
    q_max: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    *_rest: Any,
    **_named: Any,
) -> Tensor:
    shape = (codes.shape[0], *out_size(codes, kernel, stride, padding, dilation), weight_scale.shape[0])
    return codes.new_empty(shape, dtype=torch.float32).permute(0, 3, 1, 2)


OPS = (quantize, group_norm_silu_quantize, layer_norm_quantize, geglu_quantize, int_linear, int_conv2d)


def _on_gpu(name: str) -> Callable[..., Any]:
    return lambda *inputs, **named: getattr(_gpu("torch_kernels"), name)(*inputs, **named)


for _op in OPS:
    _op.register_kernel("cuda")(_on_gpu(_op._name))
