"""The CUDA side of `dq_kernels.torch_ops`: functional ops around `launch`. Never run on a GPU; interpreted in tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dq_kernels.cpu.library import KernelInputError
from dq_kernels.gpu.launch import launching as launch
from dq_kernels.gpu.launch.float_calls import CodeOutput
from dq_kernels.gpu.launch.product_calls import Epilogue, Window
from dq_kernels.gpu.launch.weights import ALIGNMENT, Quantizer, Weights, int4_pitch, make_weights


def pack_weights(rows: Tensor, bits: int) -> Tensor:
    """Bytes of the packed weights, then of their int32 sums, as one uint8 vector on the device of `rows`."""
    made = make_weights(rows.cpu().numpy(), np.ones(len(rows), np.float32), bits=bits)
    both = np.concatenate([made.data.reshape(-1).view(np.uint8), made.sums.view(np.uint8)])
    return torch.from_numpy(both).to(rows.device)


def _unpacked(packed: Tensor, scale: Tensor, kernel: tuple[int, int], channels: int, bits: int) -> Weights:
    out, taps = scale.shape[0], kernel[0] * kernel[1]
    pitch = int4_pitch(channels) if bits == 4 else -(-channels // ALIGNMENT) * ALIGNMENT
    size = out * taps * pitch
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (size + 4 * out,):
        found = f"{packed.dtype} {tuple(packed.shape)}"
        raise KernelInputError(f"packed weights are {found}, expected torch.uint8 ({size + 4 * out},): {bits} bits")
    data = packed[:size].view(torch.int8).view(out, taps, pitch)
    sums = packed[size:].clone().view(torch.int32)  # its own memory: the size above need not be a multiple of 4
    return Weights(data=data, sums=sums, scale=scale, bits=bits, kernel=kernel, channels=channels)


def _rows(x: Tensor) -> Tensor:
    from dq_kernels.torch_ops import rows_of

    return rows_of("an array", x).contiguous()


def _like(x: Tensor, rows: Tensor) -> Tensor:
    from dq_kernels.torch_ops import like

    return like(x, rows)


def _outputs(
    rows: Tensor,
    pre: Sequence[Tensor],
    inverse_scale: Sequence[Tensor],
    zero_point: Sequence[Tensor],
    q_min: Sequence[int],
    q_max: Sequence[int],
    first: Sequence[int],
) -> list[CodeOutput]:
    parts = zip(pre, inverse_scale, zero_point, q_min, q_max, first, strict=True)
    return [
        CodeOutput(
            quantizer=Quantizer(pre=p, inverse_scale=i, zero_point=z, q_min=low, q_max=high, first=at),
            codes=rows.new_empty((*rows.shape[:2], p.shape[0]), dtype=torch.int8),
        )
        for p, i, z, low, high, at in parts
    ]


def _results(x: Tensor, outputs: Sequence[CodeOutput], y: Tensor | None, seen: Tensor) -> list[Tensor]:
    found = [*(output.codes for output in outputs), *(() if y is None else (y,))]
    return [*(_like(x, array) for array in found), seen]


def quantize(
    x: Tensor, step: Tensor, pre: Tensor, inverse: Tensor, points: Tensor, low: int, high: int, first: int = 0
) -> list[Tensor]:
    """See `torch_ops.quantize`; so for the others."""
    rows, seen = _rows(x), x.new_zeros(1, dtype=torch.int32)
    (output,) = _outputs(rows, [pre], [inverse], [points], [low], [high], [first])
    launch.quantize(rows, step, output.quantizer, codes=output.codes, nan_seen=seen)
    return _results(x, [output], None, seen)


def group_norm_silu_quantize(
    x: Tensor,
    step: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    *tables: Any,
    with_y: bool = False,
) -> list[Tensor]:
    """Tables are pre, inverse_scale, zero_point, q_min, q_max and first of the parts, and with_y where it is given."""
    rows, seen = _rows(x), x.new_zeros(1, dtype=torch.int32)
    outputs, y = _outputs(rows, *tables[:6]), _asked(rows, tables, with_y)
    norm = _affine(rows, gamma, beta) | {"groups": groups, "eps": eps, "silu": silu}
    launch.group_norm_silu_quantize(rows, step, outputs, **norm, y=y, nan_seen=seen)
    return _results(x, outputs, y, seen)


def layer_norm_quantize(
    x: Tensor, step: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, *tables: Any, with_y: bool = False
) -> list[Tensor]:
    """Tables as those of the group norm."""
    rows, seen = _rows(x), x.new_zeros(1, dtype=torch.int32)
    outputs, y = _outputs(rows, *tables[:6]), _asked(rows, tables, with_y)
    launch.layer_norm_quantize(rows, step, outputs, **_affine(rows, gamma, beta), eps=eps, y=y, nan_seen=seen)
    return _results(x, outputs, y, seen)


def _affine(rows: Tensor, gamma: Tensor | None, beta: Tensor | None) -> dict[str, Any]:
    channels, kind = rows.shape[2], torch.float32
    return {
        "gamma": rows.new_ones(channels, dtype=kind) if gamma is None else gamma,
        "beta": rows.new_zeros(channels, dtype=kind) if beta is None else beta,
    }


def _asked(rows: Tensor, tables: Sequence[Any], with_y: bool) -> Tensor | None:
    return torch.empty_like(rows) if with_y or (len(tables) > 6 and tables[6]) else None


def geglu_quantize(
    x: Tensor, step: Tensor, pre: Tensor, inverse: Tensor, points: Tensor, low: int, high: int, with_y: bool = False
) -> list[Tensor]:
    """Codes and y have half the channels of x."""
    rows, seen = _rows(x), x.new_zeros(1, dtype=torch.int32)
    channels = rows.shape[2] // 2
    (output,) = _outputs(rows, [pre], [inverse], [points], [low], [high], [0])
    y = rows.new_empty((*rows.shape[:2], channels)) if with_y else None
    launch.geglu_quantize(rows, step, output, channels=channels, y=y, nan_seen=seen)
    return _results(x, [output], y, seen)


def _epilogue(y: Tensor, bias: Any, row: Any, residual: Any, previous: Any) -> Epilogue:
    wide = [None if array is None else _rows(array) for array in (residual, previous)]
    return Epilogue(y=y, bias=bias, row=row, residual=wide[0], previous=wide[1])


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
    """Result in float32."""
    rows = _rows(codes)
    weights = _unpacked(packed, weight_scale, (1, 1), rows.shape[2], weight_bits)
    y = codes.new_empty((*rows.shape[:2], weight_scale.shape[0]), dtype=torch.float32)
    quantizer = Quantizer(scale=scale, zero_point=zero_point, q_min=q_min, q_max=q_max)
    launch.int_linear(rows, weights, quantizer, step, _epilogue(y, bias, row, residual, previous))
    return _like(codes, y)


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
    """Result in float32; the rows of padding are made from the zero points on the device."""
    from dq_kernels.torch_ops import out_size

    rows, out = _rows(codes), out_size(codes, kernel, stride, padding, dilation)
    weights = _unpacked(packed, weight_scale, (kernel[0], kernel[1]), rows.shape[2], weight_bits)
    y = codes.new_empty((rows.shape[0], out[0] * out[1], weight_scale.shape[0]), dtype=torch.float32)
    pads = (zero_point - (q_min + 128)).to(torch.int8)[:, None].repeat(1, rows.shape[2])
    quantizer = Quantizer(scale=scale, zero_point=zero_point, pads=pads, q_min=q_min, q_max=q_max)
    window = Window(
        size=(codes.shape[2], codes.shape[3]),
        out_size=out,
        stride=(stride[0], stride[1]),
        padding=(padding[0], padding[2]),
        dilation=(dilation[0], dilation[1]),
    )
    launch.int_conv2d(rows, weights, quantizer, step, _epilogue(y, bias, row, residual, previous), window)
    return y.unflatten(1, out).permute(0, 3, 1, 2)
