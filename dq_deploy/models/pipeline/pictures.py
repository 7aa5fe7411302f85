"""Pictures and masks that a pipeline is given by path."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dq_deploy.errors import FileProblemError, words_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

KINDS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
"""Kinds of files by Pillow's names; of others some start another program, as EPS does."""

MOST_PIXELS = 2**26
"""Of a picture that is given as bytes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureData:
    """A picture that is given as the bytes of its file.

    Attributes:
        name: what messages call it.
        data: of a PNG, JPEG or another of `KINDS`.
        most_pixels: it may have, looked at before it is decoded.
    """

    name: str
    data: bytes
    most_pixels: int = MOST_PIXELS

    def __str__(self) -> str:
        """Its name."""
        return self.name


def _opened(path: Path | PictureData) -> Any:
    """A picture as it is meant to be looked at: turned as its camera says, as diffusers loads one.

    Raises:
        FileProblemError: it is missing, damaged, or several in one file.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(path, Path) and not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise FileProblemError(f"the picture {path} {what}; expected a file as PNG or JPEG")
    try:
        with Image.open(path if isinstance(path, Path) else io.BytesIO(path.data), formats=KINDS) as picture:
            if isinstance(path, PictureData) and picture.width * picture.height > path.most_pixels:
                size = f"{picture.width} x {picture.height}"
                raise ValueError(f"it has {size} pixels, expected at most {path.most_pixels} in all")
            # a photograph by a phone may have its preview behind it (MPO)
            frames = 1 if picture.format == "MPO" else int(getattr(picture, "n_frames", 1))
            picture.load()
            turned = ImageOps.exif_transpose(picture)
    except UnidentifiedImageError as error:
        kinds = "PNG, JPEG, WebP, BMP or TIFF"
        raise FileProblemError(f"the picture {path} is damaged or no {kinds}; save it again as PNG") from error
    except Exception as error:  # of PIL and its decoders: they share no base class
        raise FileProblemError(
            f"the picture {path} cannot be read ({words_of(error)}); save it again as PNG"
        ) from error
    if frames != 1:
        raise FileProblemError(f"the picture {path} has {frames} frames, expected one; save the one that is meant")
    return turned


def read_picture(
    path: Path | PictureData, *, multiple_of: int = 1, height: int | None = None, width: int | None = None
) -> Any:
    """A colour picture.

    Args:
        path: of the file, or its bytes.
        multiple_of: both sizes must be; diffusers would scale the picture silently.
        height: expected one, None for any, and so width.
        width: likewise.

    Raises:
        FileProblemError: it is missing, damaged, or has another mode or size.
    """
    picture = _opened(path)
    if picture.mode != "RGB":
        raise FileProblemError(f"the picture {path} has the mode {picture.mode}, expected RGB; convert it")
    columns, rows = picture.size
    if (height or rows, width or columns) != (rows, columns):
        raise FileProblemError(
            f"the picture {path} is {columns} x {rows} (width x height), expected {width or columns} x "
            f"{height or rows}; scale it or leave the sizes out"
        )
    if rows % multiple_of or columns % multiple_of:
        raise FileProblemError(
            f"the picture {path} is {columns} x {rows}, expected multiples of {multiple_of}, the pixels of a latent; "
            "scale or crop it"
        )
    return picture


def read_mask(path: Path | PictureData) -> Any:
    """A mask, white where the picture is painted anew.

    Raises:
        FileProblemError: it is missing, damaged, or of another mode than grey or black and white.
    """
    picture = _opened(path)
    if picture.mode not in ("L", "1", "RGB"):
        raise FileProblemError(f"the mask {path} has the mode {picture.mode}, expected L (grey); convert it")
    return picture.convert("L")


def check_same_size(pictures: Mapping[str, Any]) -> None:
    """Refuse pictures of one call that differ in size.

    Raises:
        FileProblemError: they do.
    """
    sizes = {name: picture.size for name, picture in pictures.items()}
    if len(set(sizes.values())) > 1:
        words = ", ".join(f"{name} {columns} x {rows}" for name, (columns, rows) in sizes.items())
        raise FileProblemError(f"the pictures of one call have the sizes {words}, expected one size; scale them")
