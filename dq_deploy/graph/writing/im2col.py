"""Patches of an int8 image as rows of a matrix, in operations that TensorRT keeps in int8."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dq_deploy.graph.writing.builder import Builder

I8 = ir.DataType.INT8


@dataclass(frozen=True, kw_only=True)
class Window:
    """Where a convolution looks.

    Attributes:
        kernel: (rows, columns).
        stride: (vertical, horizontal).
        padding: (top, left, bottom, right) still to be added, of the code 0.
        dilation: (vertical, horizontal).
        size: height and width before that padding.
        size_out: height and width of the output.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    size: tuple[int, int]
    size_out: tuple[int, int]

    @property
    def whole_pixels(self) -> bool:
        """Whether each row is just one pixel, so that nothing is copied."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and not any(self.padding)

    def patch_bytes(self, channels: int) -> int:
        """Bytes of the int8 patch matrix of one sample; 0 where nothing is copied."""
        if self.whole_pixels:
            return 0
        return self.size_out[0] * self.size_out[1] * self.kernel[0] * self.kernel[1] * channels


def patch_rows(b: Builder, codes: ir.Value, channels: int, window: Window) -> ir.Value:
    """Rows [B, H_out * W_out, kh * kw * C] of int8 codes [B, C, H, W]; K in the order (kh, kw, C).

    Transpose to [B, H, W, C], Pad with 0, one strided Slice a kernel position, Concat along the channels.
    """
    pixels = b.op("Transpose", [codes], "pixels", attributes={"perm": [0, 2, 3, 1]}, dtype=I8)
    (kh, kw), (rows, columns) = window.kernel, window.size_out
    if any(window.padding):
        top, left, bottom, right = window.padding
        pads = np.array([0, top, left, 0, 0, bottom, right, 0], np.int64)
        # no value: TensorRT takes an int8 constant in front of DequantizeLinear only, and 0 is the default
        pixels = b.op("Pad", [pixels, b.constant(pads, "pads")], "padded", dtype=I8)
    if window.whole_pixels:
        patches = pixels
    else:
        positions = [(i, j) for i in range(kh) for j in range(kw)]
        slices = [_slice(b, pixels, i, j, window) for i, j in positions]
        patches = slices[0]
        if len(slices) > 1:
            patches = b.op("Concat", slices, "patches", attributes={"axis": 3}, dtype=I8)
    shape = np.array([0, rows * columns, kh * kw * channels], np.int64)
    return b.op("Reshape", [patches, b.constant(shape, "rows_shape")], "rows", dtype=I8)


def _slice(b: Builder, pixels: ir.Value, i: int, j: int, window: Window) -> ir.Value:
    starts = np.array([i * window.dilation[0], j * window.dilation[1]], np.int64)
    reach = np.array([(n - 1) * s + 1 for n, s in zip(window.size_out, window.stride, strict=True)], np.int64)
    inputs = [
        pixels,
        b.constant(starts, "starts"),
        b.constant(starts + reach, "ends"),
        b.constant(np.array([1, 2], np.int64), "axes"),
        b.constant(np.array(window.stride, np.int64), "strides"),
    ]
    return b.op("Slice", inputs, f"patch{i}_{j}", dtype=I8)


def patch_matrix(q_weight: NDArray[np.integer]) -> NDArray[np.int8]:
    """Weights [C_out, C, kh, kw] as the int8 matrix [kh * kw * C, C_out] that `patch_rows` is multiplied with."""
    matrix: NDArray[np.int8] = q_weight.transpose(2, 3, 1, 0).reshape(-1, len(q_weight)).astype(np.int8)
    return np.ascontiguousarray(matrix)
