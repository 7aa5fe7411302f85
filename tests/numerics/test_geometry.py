"""One window and one order of padding: (top, left, bottom, right)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dq_deploy.numerics.geometry import NO_PADDING, Window, added, padded, padded_size


def test_padding_is_top_left_bottom_right():
    around = padded(np.ones((1, 1, 2, 3), np.int32), (1, 2, 3, 4))
    assert around.shape[2:] == padded_size((2, 3), (1, 2, 3, 4)) == (6, 9)
    rows, columns = np.nonzero(around[0, 0])
    assert (rows.min(), columns.min()) == (1, 2)
    assert added((1, 2, 3, 4), (10, 20, 30, 40)) == (11, 22, 33, 44)


@pytest.mark.parametrize(
    "window",
    [
        Window(kernel=(3, 3), padding=(1, 1, 1, 1)),
        Window(kernel=(3, 2), stride=(2, 1), padding=(0, 1, 1, 2), dilation=(1, 2)),
        Window(kernel=(1, 1)),
        Window(kernel=(1, 1), stride=(2, 2)),
    ],
)
def test_sizes_and_positions_are_those_of_torch(window):
    size = (7, 8)
    numbers = torch.arange(1, 57, dtype=torch.float64).reshape(1, 1, *size)
    top, left, bottom, right = window.padding
    image = torch.nn.functional.pad(numbers, (left, right, top, bottom))
    for row in range(window.kernel[0]):
        for column in range(window.kernel[1]):
            picks = torch.zeros(1, 1, *window.kernel, dtype=torch.float64)
            picks[0, 0, row, column] = 1
            got = torch.nn.functional.conv2d(image, picks, stride=window.stride, dilation=window.dilation)[0, 0]
            assert tuple(got.shape) == window.size_out(size)
            rows, columns = (at[:, place] for at, place in zip(window.positions(size), (row, column), strict=True))
            inside = ((rows >= 0) & (rows < 7))[:, None] & ((columns >= 0) & (columns < 8))[None, :]
            expected = np.where(inside, rows[:, None] * 8 + columns[None, :] + 1, 0)
            np.testing.assert_array_equal(got.numpy(), expected)


def test_whole_pixels_are_1x1_without_stride_or_padding():
    assert Window(kernel=(1, 1)).whole_pixels
    assert not Window(kernel=(1, 1), stride=(2, 1)).whole_pixels
    assert not Window(kernel=(1, 2)).whole_pixels
    assert not Window(kernel=(1, 1)).padded_by((0, 0, 0, 1)).whole_pixels
    assert Window(kernel=(1, 1)).padded_by(NO_PADDING).whole_pixels
