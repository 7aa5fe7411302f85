"""Images side by side in one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dq_deploy.artifacts import atomic_path
from dq_deploy.errors import InputError

COLUMNS = 10
CELL = 96
GAP = 4
MARGIN = 84
HEAD = 18


def bytes_from_unit(images: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Bytes 0..255 of values in [-1, 1], rounded half to even, clipped."""
    return np.clip(np.rint((np.asarray(images, np.float64) + 1) * 127.5), 0, 255).astype(np.uint8)


def write_grid(
    path: Path,
    rows: Sequence[tuple[str, NDArray[np.floating]]],
    captions: Sequence[str],
) -> None:
    """Write a PNG with one row per denoiser and one column per image, wrapped after ten columns.

    Args:
        path: of the PNG.
        rows: (name, images [N, C, H, W] in [-1, 1]) with C of 1 or 3.
        captions: [N], above the columns.

    Raises:
        InputError: the rows have different shapes, or neither 1 nor 3 channels.
        FileProblemError: the file cannot be written.
    """
    from PIL import Image, ImageDraw

    shapes = {images.shape for _, images in rows}
    if len(shapes) != 1 or len(captions) != len(rows[0][1]):
        raise InputError(f"rows have shapes {sorted(shapes)} and {len(captions)} captions, expected one shape [N, ...]")
    count, channels, height, width = rows[0][1].shape
    if channels not in (1, 3):
        raise InputError(f"images have {channels} channels, expected 1 or 3: a PNG cannot show others")
    scale = max(1, CELL // max(height, width))
    cell_w, cell_h = width * scale + GAP, height * scale + GAP
    columns = min(count, COLUMNS)
    blocks = -(-count // columns)
    block_h = HEAD + cell_h * len(rows) + GAP
    canvas = Image.new("RGB", (MARGIN + columns * cell_w, blocks * block_h), "white")
    draw = ImageDraw.Draw(canvas)
    for index in range(count):
        left = MARGIN + (index % columns) * cell_w
        top = (index // columns) * block_h
        draw.text((left + width * scale // 2, top + 3), captions[index], fill="black", anchor="ma")
        for row, (name, images) in enumerate(rows):
            y = top + HEAD + row * cell_h
            if index % columns == 0:
                draw.text((6, y + height * scale // 2), name, fill="black", anchor="lm")
            pixels = bytes_from_unit(images[index])
            shown = np.moveaxis(pixels, 0, -1) if channels == 3 else np.repeat(pixels[0][..., None], 3, axis=2)
            picture = Image.fromarray(shown).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            canvas.paste(picture, (left, y))
    with atomic_path(path) as temporary:
        canvas.save(temporary, format="PNG")


def write_picture(path: Path, image: NDArray[np.floating]) -> None:
    """Write one picture [C, H, W] in [-1, 1] as a PNG of its own size.

    Raises:
        InputError: neither 1 nor 3 channels.
        FileProblemError: the file cannot be written.
    """
    from PIL import Image

    if len(image) not in (1, 3):
        raise InputError(f"the picture has {len(image)} channels, expected 1 or 3: a PNG cannot show others")
    pixels = bytes_from_unit(image)
    picture = Image.fromarray(pixels[0] if len(image) == 1 else np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def write_samples(path: Path, rows: Mapping[str, NDArray[np.floating]]) -> None:
    """Write what was sampled as a safetensors file: [N, C, H, W] float32 by the name of the denoiser.

    Raises:
        FileProblemError: the file cannot be written.
    """
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        save_file({name: np.ascontiguousarray(values, np.float32) for name, values in rows.items()}, temporary)
