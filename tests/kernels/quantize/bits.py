"""Arrays compared bit for bit; the message names the first place where they differ."""

from __future__ import annotations

import numpy as np


def assert_same_bits(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    assert found.dtype == expected.dtype, f"{name}: {found.dtype}, expected {expected.dtype}"
    assert found.shape == expected.shape, f"{name}: {found.shape}, expected {expected.shape}"
    kind = f"u{expected.dtype.itemsize}"
    differ = np.ascontiguousarray(found).view(kind) != np.ascontiguousarray(expected).view(kind)
    if expected.dtype.kind == "f":
        differ &= ~(np.isnan(found) & np.isnan(expected))
    if differ.any():
        place = tuple(int(i) for i in np.argwhere(differ)[0])
        raise AssertionError(
            f"{name} differs in {int(differ.sum())} of {differ.size} places, first at {place}: "
            f"{found[place]!r}, expected {expected[place]!r}"
        )


def apart(x: np.ndarray, pitch: int) -> np.ndarray:
    """The same values as a view whose rows lie `pitch` elements apart; NaN lies between them."""
    wide = np.full((*x.shape[:2], pitch), np.nan, x.dtype)
    view = wide[:, :, : x.shape[2]]
    view[...] = x
    return view
