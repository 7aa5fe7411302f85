"""Packed weights that a file holds: whether they are what this library packs, and the weights in them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_kernels.cpu.library import KernelInputError, pack_weights
from dq_kernels.cpu.packed import ALIGNMENT, INT8, TILE_REACH
from dq_kernels.cpu.structs import EMULATED, ISAS, PackedHead

INT4, WIDE = 1, 2
"""`form` of weights of which two fill a byte, and of int8 ones that the kernels widen."""
_TILED = ("amx", EMULATED)
_PAIRS = (2, 4, 8)


def layout_sha256(isa: str) -> str:
    """Names how this library packs for an instruction set: the hash of some small weights, packed."""
    digest = hashlib.sha256()
    pattern = (np.arange(37 * 3 * 13) * 97 % 251).astype(np.uint8).view(np.int8).reshape(37, 3, 13)
    for weights, zeros in ((pattern, None), (pattern >> 4, None), (pattern, np.arange(37, dtype=np.int32))):
        for span in (15, 255):
            digest.update(pack_weights(isa, np.ascontiguousarray(weights), span, zeros).tobytes())
    return digest.hexdigest()


def columns_of(isa: str) -> int:
    """Output channels of a panel, for an instruction set."""
    return int(_head(pack_weights(isa, np.zeros((1, 1, 4), np.int8), 255)).columns)


def check_stored(
    packed: NDArray[np.uint8], *, isa: str, columns: int, layer: tuple[int, int, int], span: int, zeros: bool
) -> None:
    """Refuse packed weights whose head is not, in every field, the one this library would write for the layer.

    Args:
        packed: as a file holds them.
        isa: instruction set they are packed for.
        columns: of a panel, see `columns_of`.
        layer: output channels, window places and input channels.
        span: q_max - q_min of the activations.
        zeros: whether they have zero points.

    Raises:
        KernelInputError: naming the field.
    """
    if packed.dtype != np.uint8 or packed.ndim != 1 or packed.size < ALIGNMENT or packed.ctypes.data % ALIGNMENT:
        raise KernelInputError("packed weights are no aligned bytes")
    found = _head(packed)
    bits, pairs = int(found.bits), int(found.pairs)
    narrow = isa == "avx2" and pairs in _PAIRS
    if not 1 <= bits <= 8 or not (narrow or pairs == 0):
        raise KernelInputError(f"packed weights have {bits} bits and {pairs} pairs, expected those of {isa}")
    wide = isa == "portable" or (isa == "avx2" and not narrow)
    form = INT4 if bits <= 4 else WIDE if wide else INT8
    out_channels, positions, channels = layer
    groups, panels = -(-channels // 4), -(-out_channels // columns)
    sums = -(-_HEAD // ALIGNMENT) * ALIGNMENT
    table = -(-panels * columns * 4 // ALIGNMENT) * ALIGNMENT
    step = columns * (2 if form == INT4 else 4)
    weights = sums + table * (2 if zeros else 1)
    expected = {
        **{"isa": ISAS.index(isa), "columns": columns, "form": form, "pairs": pairs, "bits": bits},
        **{"code_span": span, "out_channels": out_channels, "positions": positions, "channels": channels},
        **{"groups": groups, "panels": panels, "sums": sums, "weights": weights, "step_bytes": step},
        "zeros": sums + table if zeros else 0,
    }
    for name, value in expected.items():
        if getattr(found, name) != value:
            raise KernelInputError(f"{name} of packed weights is {getattr(found, name)}, expected {value}")
    end = weights + -(-panels * positions * groups * step // ALIGNMENT) * ALIGNMENT
    end += TILE_REACH if isa in _TILED and form == INT8 else 0
    if packed.size != end:
        raise KernelInputError(f"packed weights have {packed.size} bytes, expected {end}")


def unpacked(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """The weights in packed ones that `check_stored` let pass: int8 [out_channels, positions, channels]."""
    head = _head(packed)
    count = head.panels * head.positions * head.groups * head.step_bytes
    held = packed[head.weights : head.weights + count]
    if head.form == INT4:
        halves = held.reshape(head.panels, head.positions, head.groups, head.columns // 2, 4)
        nibbles = np.concatenate([halves & 15, halves >> 4], axis=3)
        values = ((nibbles ^ 8).view(np.int8) - np.int8(8)).astype(np.int8)
    else:
        values = held.view(np.int8).reshape(head.panels, head.positions, head.groups, head.columns, 4)
    rows = values.transpose(0, 3, 1, 2, 4).reshape(head.panels * head.columns, head.positions, head.groups * 4)
    return np.ascontiguousarray(rows[: head.out_channels, :, : head.channels])


_HEAD = 6 * 4 + 9 * 8


def _head(packed: NDArray[np.uint8]) -> Any:
    """A copy, which needs no writeable memory."""
    return PackedHead.from_buffer_copy(packed[:_HEAD].tobytes())
