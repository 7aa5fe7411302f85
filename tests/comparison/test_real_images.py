"""Real images come from an NPZ file or a folder of pictures, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dq_deploy.comparison import read_real_images
from dq_deploy.errors import DqError

BYTES = np.random.default_rng(0).integers(0, 256, (9, 6, 5, 3), dtype=np.uint8)
FLOATS = np.moveaxis(BYTES, -1, 1).astype(np.float32) / 127.5 - 1


def test_bytes_floats_and_pictures_give_the_same_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "bytes.npz", images=BYTES)
    np.savez(tmp_path / "floats.npz", images=FLOATS)
    (tmp_path / "pictures").mkdir()
    for i, picture in enumerate(BYTES):
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{i}.png")
    for name in ("bytes.npz", "floats.npz", "pictures"):
        np.testing.assert_allclose(read_real_images(tmp_path / name, 3), FLOATS, atol=1e-6)


def test_pictures_become_grey_for_a_grey_model(tmp_path: Path) -> None:
    for i, picture in enumerate(BYTES):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    assert read_real_images(tmp_path, 1).shape == (9, 1, 6, 5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pixels": BYTES}, "cannot be read"),
        ({"images": BYTES[:2]}, "at least 8"),
        ({"images": BYTES[..., 0]}, "of shape"),
        ({"images": BYTES.astype(np.int64)}, "are int64"),
        ({"images": FLOATS * 2}, "within"),
    ],
)
def test_a_wrong_array_is_one_line(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "real.npz", **arrays)
    with pytest.raises(DqError, match=message):
        read_real_images(tmp_path / "real.npz", 3)


def test_what_is_no_picture_or_of_another_size_is_named(tmp_path: Path) -> None:
    with pytest.raises(DqError, match="holds no picture"):
        read_real_images(tmp_path, 3)
    Image.fromarray(BYTES[0]).save(tmp_path / "a.png")
    Image.fromarray(BYTES[0][:3]).save(tmp_path / "b.png")
    with pytest.raises(DqError, match="one size"):
        read_real_images(tmp_path, 3)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DqError, match="cannot read picture"):
        read_real_images(tmp_path, 3)
    np.savez_compressed(tmp_path / "whole.npz", images=BYTES)
    whole = (tmp_path / "whole.npz").read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:60] + bytes(20) + whole[80:]):
        (tmp_path / "damaged.npz").write_bytes(damaged)
        with pytest.raises(DqError, match="cannot be read"):
            read_real_images(tmp_path / "damaged.npz", 3)
    with pytest.raises(DqError, match="does not exist"):
        read_real_images(tmp_path / "none.npz", 3)
