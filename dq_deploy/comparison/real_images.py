"""Real images a user gives: an NPZ file or a folder of pictures, as floats in [-1, 1]."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.artifacts import NPZ_ERRORS
from dq_deploy.errors import FileProblemError, InputError
from dq_deploy.numerics.arrays import F32

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
KEY = "images"
LEAST = 8


def read_real_images(path: Path, channels: int) -> F32:
    """Images [M, C, H, W] float32 in [-1, 1], in the order of the file or of the file names.

    Args:
        path: an NPZ file whose `images` are uint8 [M, H, W, C] or [M, H, W], or floats [M, C, H, W] in [-1, 1]; or a
            folder of pictures of one size.
        channels: C, 1 or 3: pictures of a folder are converted, those of a file must have it.

    Raises:
        FileProblemError: the path is neither, or cannot be read.
        InputError: arrays of another form, fewer than `LEAST` images, or pictures of several sizes.
    """
    found = _of_folder(path, channels) if path.is_dir() else _of_file(path)
    if found.ndim != 4 or found.shape[1] != channels or len(found) < LEAST:
        raise InputError(
            f"real images of {path} are {found.shape}, expected at least {LEAST} of shape [{channels}, H, W]: "
            f"uint8 [M, H, W, {channels}] or floats [M, {channels}, H, W] under {KEY!r}"
        )
    if not np.isfinite(found).all() or np.abs(found).max() > 1:
        raise InputError(f"real images of {path} are not all within [-1, 1], expected that, or bytes")
    return found


def digest_of(images: NDArray[Any]) -> str:
    """Hex SHA-256 of the values and their shape."""
    data = np.ascontiguousarray(images)
    return hashlib.sha256(f"{data.dtype} {data.shape}".encode() + data.tobytes()).hexdigest()


def _of_bytes(images: NDArray[np.uint8]) -> F32:
    x = images[..., None] if images.ndim == 3 else images
    return np.ascontiguousarray(np.moveaxis(x, -1, 1).astype(np.float32) / np.float32(127.5) - np.float32(1))


def _of_file(path: Path) -> F32:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays[KEY]
    except NPZ_ERRORS as error:
        what = "does not exist" if not path.exists() else f"cannot be read ({type(error).__name__}: {error})"
        raise FileProblemError(
            f"real images {path} {what}, expected an NPZ file with {KEY!r} or a folder of pictures"
        ) from error
    if images.dtype == np.uint8 and images.ndim in (3, 4):
        return _of_bytes(images)
    if not np.issubdtype(images.dtype, np.floating):
        raise InputError(f"real images of {path} are {images.dtype}, expected uint8 or floats")
    return np.asarray(images, np.float32)


def _of_folder(path: Path, channels: int) -> F32:
    from PIL import Image

    files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
    if not files:
        raise FileProblemError(f"folder {path} holds no picture, expected some of {', '.join(PICTURES)}")
    kept: list[NDArray[np.uint8]] = []
    for file in files:
        try:
            with Image.open(file) as opened:
                picture = np.asarray(opened.convert("L" if channels == 1 else "RGB"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise FileProblemError(f"cannot read picture {file}: {error}; remove it or save it again") from error
        if kept and picture.shape != kept[0].shape:
            raise InputError(f"{file} is {picture.shape}, expected {kept[0].shape} as {files[0].name}: one size")
        kept.append(picture)
    return _of_bytes(np.stack(kept))
