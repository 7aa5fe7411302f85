"""The float convolution in float64 numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def float_conv2d(
    x: NDArray[Any],
    weights: NDArray[Any],
    bias: NDArray[Any] | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> NDArray[np.float64]:
    """Channels-last convolution, float64 [batch, out_height, out_width, out_channels].

    Args:
        x: [batch, height, width, channels].
        weights: [out_channels, kernel_h, kernel_w, channels / groups].
        bias: [out_channels].
        stride: down and across.
        padding: top, bottom, left, right, by zeros.
        dilation: down and across.
        groups: of channels; output channels of a group see its input channels alone.
    """
    top, bottom, left, right = padding
    padded = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    out, kernel_h, kernel_w, channels = weights.shape
    height = (padded.shape[1] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    width = (padded.shape[2] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    y = np.zeros((x.shape[0], height, width, out))
    for group in range(groups):
        mine = slice(group * out // groups, (group + 1) * out // groups)
        part = padded[..., group * channels : (group + 1) * channels]
        for i in range(kernel_h):
            for j in range(kernel_w):
                rows = slice(i * dilation[0], i * dilation[0] + stride[0] * (height - 1) + 1, stride[0])
                columns = slice(j * dilation[1], j * dilation[1] + stride[1] * (width - 1) + 1, stride[1])
                y[..., mine] += part[:, rows, columns] @ weights[mine, i, j].astype(np.float64).T
    return y if bias is None else y + bias
