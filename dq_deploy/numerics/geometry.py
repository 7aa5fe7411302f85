"""Where a convolution looks: one value for its window, and one order for padding.

Padding is always (top, left, bottom, right), the order of ONNX's `pads`. Pairs are (vertical, horizontal).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dq_deploy.numerics.arrays import I64, Array

Pair = tuple[int, int]
Padding = tuple[int, int, int, int]

NO_PADDING: Padding = (0, 0, 0, 0)


def added(first: Padding, second: Padding) -> Padding:
    """Padding by both, one around the other."""
    top, left, bottom, right = (a + b for a, b in zip(first, second, strict=True))
    return top, left, bottom, right


def padded_size(size: Pair, padding: Padding) -> Pair:
    """Height and width of an image with padding around it."""
    top, left, bottom, right = padding
    return size[0] + top + bottom, size[1] + left + right


def padded(x: Array, padding: Padding) -> Array:
    """An image [..., H, W] with zeros around it."""
    top, left, bottom, right = padding
    return np.pad(x, ((0, 0),) * (x.ndim - 2) + ((top, bottom), (left, right)))


@dataclass(frozen=True, kw_only=True)
class Window:
    """The window that a convolution moves over its image.

    Output pixel i of an axis reads, at kernel position j, the input pixel `i * stride + j * dilation - padding before`.

    Attributes:
        kernel: (rows, columns).
        stride: (vertical, horizontal).
        padding: (top, left, bottom, right), pixels of the value 0 around the image.
        dilation: (vertical, horizontal).
    """

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Padding = NO_PADDING
    dilation: Pair = (1, 1)

    @property
    def span(self) -> Pair:
        """Rows and columns from the first pixel it reads to the last: dilation * (kernel - 1) + 1."""
        return self.dilation[0] * (self.kernel[0] - 1) + 1, self.dilation[1] * (self.kernel[1] - 1) + 1

    @property
    def whole_pixels(self) -> bool:
        """Whether each output pixel reads the input pixel at its own place alone."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and not any(self.padding)

    def padded_by(self, more: Padding) -> Window:
        """The window over an image around which further zeros are put first."""
        return replace(self, padding=added(self.padding, more))

    def size_out(self, size: Pair) -> Pair:
        """Height and width of the output for an image of this height and width."""
        (height, width), (rows, columns) = padded_size(size, self.padding), self.span
        return (height - rows) // self.stride[0] + 1, (width - columns) // self.stride[1] + 1

    def positions(self, size: Pair) -> tuple[I64, I64]:
        """Input rows [H_out, kh] and columns [W_out, kw] that are read; outside the image they are padding."""
        before = self.padding[:2]
        rows, columns = (
            np.arange(count)[:, None] * s + np.arange(k)[None, :] * d - start
            for count, k, s, d, start in zip(
                self.size_out(size), self.kernel, self.stride, self.dilation, before, strict=True
            )
        )
        return rows, columns
