"""Patches of an int8 image as rows of a matrix, in operations that TensorRT keeps in int8."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dq_deploy.graph.writing.builder import Builder
from dq_deploy.numerics.geometry import Pair, Window

I8 = ir.DataType.INT8
TO_END = 2**31 - 1
"""End of a Slice that leaves nothing out."""


def patch_bytes(window: Window, size: Pair, channels: int) -> int:
    """Bytes of the int8 patch matrix of one sample; 0 where a row is just one pixel and nothing is copied."""
    if window.whole_pixels:
        return 0
    rows, columns = window.size_out(size)
    return rows * columns * window.kernel[0] * window.kernel[1] * channels


def patch_rows(b: Builder, codes: ir.Value, channels: int, window: Window) -> ir.Value:
    """Rows [B, H_out * W_out, kh * kw * C] of int8 codes [B, C, H, W]; K in the order (kh, kw, C).

    Transpose to [B, H, W, C], Pad with 0, one strided Slice a kernel position, Concat along the channels.

    Args:
        b: where the operations are written.
        codes: the image.
        channels: C.
        window: the convolution's; its padding is of the code 0.
    """
    pixels = b.op("Transpose", [codes], "pixels", attributes={"perm": [0, 2, 3, 1]}, dtype=I8)
    kh, kw = window.kernel
    if any(window.padding):
        top, left, bottom, right = window.padding
        pads = np.array([0, top, left, 0, 0, bottom, right, 0], np.int64)
        # no value: TensorRT takes an int8 constant in front of DequantizeLinear only, and 0 is the default
        pixels = b.op("Pad", [pixels, b.constant(pads, "pads")], "padded", dtype=I8)
    if window.whole_pixels:
        patches = pixels
    else:
        positions = [(i, j) for i in range(kh) for j in range(kw)]
        slices = [_slice(b, pixels, (i, j), window) for i, j in positions]
        patches = slices[0]
        if len(slices) > 1:
            patches = b.op("Concat", slices, "patches", attributes={"axis": 3}, dtype=I8)
    shape = np.array([0, -1, kh * kw * channels], np.int64)
    return b.op("Reshape", [patches, b.constant(shape, "rows_shape")], "rows", dtype=I8)


def _slice(b: Builder, pixels: ir.Value, at: Pair, window: Window) -> ir.Value:
    """The pixels that one kernel position reads; ends are counted from the end, so that any size is right."""
    starts = [i * d for i, d in zip(at, window.dilation, strict=True)]
    behind = [span - 1 - start for span, start in zip(window.span, starts, strict=True)]
    inputs = [
        pixels,
        b.constant(np.array(starts, np.int64), "starts"),
        b.constant(np.array([-n if n else TO_END for n in behind], np.int64), "ends"),
        b.constant(np.array([1, 2], np.int64), "axes"),
        b.constant(np.array(window.stride, np.int64), "strides"),
    ]
    return b.op("Slice", inputs, f"patch{at[0]}_{at[1]}", dtype=I8)


def patch_matrix(q_weight: NDArray[np.integer]) -> NDArray[np.int8]:
    """Weights [C_out, C, kh, kw] as the int8 matrix [kh * kw * C, C_out] that `patch_rows` is multiplied with."""
    matrix: NDArray[np.int8] = q_weight.transpose(2, 3, 1, 0).reshape(-1, len(q_weight)).astype(np.int8)
    return np.ascontiguousarray(matrix)
