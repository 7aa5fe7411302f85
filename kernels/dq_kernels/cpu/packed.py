"""What packed weights say of themselves: the kernels trust it, so it is compared with the layer in front of them."""

from __future__ import annotations

from typing import Any

from dq_kernels.cpu.library import KernelInputError
from dq_kernels.cpu.structs import EMULATED, ISAS, PackedHead

ALIGNMENT = 64
"""Bytes; packed weights begin at a multiple of it."""
TILE_REACH = 1920
"""Bytes behind int8 weights that AMX may read; DQ_TILE_REACH."""
INT8 = 0
"""`form` of weights that the kernels use in place."""
HEAD_BYTES = 128
"""Head and first sums: no packed weights are shorter."""


def check_packed(address: int, size: int, layer: tuple[int, int, int], span: int) -> Any:
    """The head of packed weights that fit a layer, a `PackedHead`.

    Args:
        address: of their first byte; it must stay readable.
        size: their bytes.
        layer: output channels, window places and input channels.
        span: largest stored code.

    Raises:
        KernelInputError: they are of another layer, of narrower codes, not aligned, or no packed weights at all.
    """
    if address % ALIGNMENT:
        raise KernelInputError(f"packed weights lie at {address:#x}, expected a multiple of {ALIGNMENT}: copy them")
    head = PackedHead.from_address(address) if size >= HEAD_BYTES else PackedHead(isa=-1)
    end = head.weights + head.panels * head.positions * head.groups * head.step_bytes
    if 0 <= head.isa < len(ISAS) and ISAS[head.isa] in ("amx", EMULATED) and head.form == INT8:
        end += TILE_REACH
    if not 0 <= head.isa < len(ISAS) or not 0 < end <= size:
        raise KernelInputError(f"{size} bytes that do not begin like packed weights, expected those of pack_weights")
    found = (head.out_channels, head.positions, head.channels)
    if found != layer:
        raise KernelInputError(f"packed weights are of {found} outputs, window places and channels, expected {layer}")
    if head.code_span < span:
        raise KernelInputError(f"weights are packed for codes up to {head.code_span}, expected {span}: pack them anew")
    return head
