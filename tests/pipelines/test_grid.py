from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dq_deploy.errors import FileProblemError, InputError
from dq_deploy.pipelines.grid import CELL, GAP, HEAD, MARGIN, bytes_from_unit, write_grid


def test_bytes_are_rounded_and_clipped():
    np.testing.assert_array_equal(bytes_from_unit(np.array([-2, -1, 0, 1, 2])), [0, 0, 128, 255, 255])


def test_images_stand_where_they_should(tmp_path):
    images = np.stack([np.full((1, 32, 32), v, np.float32) for v in (-1, 1)])
    write_grid(tmp_path / "grid.png", [("first", images), ("second", -images)], ["0", "1"])
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    middle, cell = CELL // 2, CELL + GAP
    for row, column, value in ((0, 0, 0), (0, 1, 255), (1, 0, 255), (1, 1, 0)):
        assert (picture[HEAD + row * cell + middle, MARGIN + column * cell + middle] == value).all()


def test_many_images_are_wrapped_and_colour_is_kept(tmp_path):
    images = np.zeros((13, 3, 8, 8), np.float32)
    images[:, 0] = 1
    write_grid(tmp_path / "grid.png", [("engine", images)], [str(i) for i in range(13)])
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape[0] == 2 * (HEAD + CELL + GAP + GAP)
    np.testing.assert_array_equal(picture[HEAD + 5, MARGIN + 5], [255, 128, 128])


def test_rows_of_different_shapes_are_refused(tmp_path):
    rows = [("a", np.zeros((1, 1, 8, 8))), ("b", np.zeros((2, 1, 8, 8)))]
    with pytest.raises(InputError, match="one shape"):
        write_grid(tmp_path / "grid.png", rows, ["0"])


def test_an_unwritable_grid_leaves_nothing(tmp_path):
    with pytest.raises(FileProblemError):
        write_grid(tmp_path / "missing" / "grid.png", [("a", np.zeros((1, 1, 8, 8)))], ["0"])
    assert list(tmp_path.iterdir()) == []
