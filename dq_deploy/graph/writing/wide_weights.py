"""Weights w_q = w_code - w_zero_point that one signed byte does not hold, for engines that multiply bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dq_deploy.numerics.arrays import Integers

MOST_PIECES = 8
"""More products of one layer than this cost more than float."""


def split_weight(q_weight: Integers, count: int) -> list[Integers]:
    """Integers that add up to q_weight, each about one `count`-th of it: floor((w + i) / count)."""
    return [((q_weight + i) // count).astype(q_weight.dtype) for i in range(count)]


def int8_pieces(q_weight: Integers) -> list[Integers]:
    """The fewest integers of [-128, 127] that add up to q_weight; empty where more than `MOST_PIECES` were needed."""
    for count in range(1, MOST_PIECES + 1):
        pieces = split_weight(q_weight, count)
        if all(piece.min() >= -128 and piece.max() <= 127 for piece in pieces):
            return pieces
    return []


def unsigned_weight(q_weight: Integers) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int32]]:
    """Any integer weights of a span of at most 255 a channel, as uint8: w_q = code - zero - rest.

    Args:
        q_weight: [C_out, ...].

    Returns:
        codes in the shape of q_weight, zero [C_out], and rest int32 [C_out]: 0 wherever a zero point of 0..255 does it.
    """
    rows = q_weight.reshape(len(q_weight), -1).astype(np.int64)
    low, high = rows.min(axis=1), rows.max(axis=1)
    added = np.clip(128, -low, 255 - high)  # puts each channel's weights into 0..255
    zero = np.clip(added, 0, 255)
    codes = (rows + added[:, None]).astype(np.uint8).reshape(q_weight.shape)
    return codes, zero.astype(np.uint8), (added - zero).astype(np.int32)
