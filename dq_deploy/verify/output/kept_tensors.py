"""Inputs and outputs of an engine's layers, kept for the check of the float operations between them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dq_deploy.numerics.arrays import Array

KEPT_BYTES = 1 << 30
"""Held in memory; what is more lies in files of the scratch folder."""


class KeptTensors:
    """By batch and layer, a layer's input and its float output.

    Args:
        folder: for what memory should not hold.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_batch: dict[int, dict[str, tuple[Array, Array]]] = {}
        self._bytes = 0
        self._files = 0

    def put(self, batch: int, layer: str, x: Array, y: Array) -> None:
        """Keep one layer's tensors of a batch."""
        self._by_batch.setdefault(batch, {})[layer] = (self._held(x), self._held(y))

    def of(self, batch: int) -> Mapping[str, tuple[Array, Array]]:
        """By layer, what was kept of a batch."""
        return self._by_batch.get(batch, {})

    def drop(self, batch: int) -> None:
        """Forget a batch."""
        self._by_batch.pop(batch, None)

    def _held(self, array: Array) -> Array:
        self._bytes += array.nbytes
        if self._bytes <= KEPT_BYTES:
            return array
        self._files += 1
        path = self._folder / f"kept-{self._files}.npy"
        np.save(path, array)
        loaded: Array = np.load(path, mmap_mode="r")
        return loaded
