"""Configurations that `tune` tries: those that fit into shared memory and registers by arithmetic."""

from __future__ import annotations

from dq_kernels.gpu.tune.configurations import (
    PRODUCTS,
    SHARED_BYTES,
    BlockConfiguration,
    Configuration,
    ProductConfiguration,
)

TILES = ((16, 64), (32, 64), (64, 64), (64, 128), (128, 16), (128, 64), (128, 128), (128, 256), (256, 128))
ACCUMULATORS = (8, 64)
"""A thread, least and most: with fewer its loads are not paid for, with 128 the epilogue spills (docs/measured.md)."""


def candidates(op: str, architecture: int, bits: int = 8) -> list[Configuration]:
    """What is worth measuring for an op.

    Args:
        op: one of the six.
        architecture: of `ARCHITECTURES`.
        bits: of the weights of a product.
    """
    if op not in PRODUCTS:
        blocks = [(elements, warps) for elements in (512, 1024, 2048, 4096, 8192) for warps in (2, 4, 8)]
        made = [BlockConfiguration(elements=elements, warps=warps) for elements, warps in blocks]
        if op != "group_norm_silu_quantize":
            return list(made)
        split = [
            BlockConfiguration(elements=one.elements, warps=one.warps, form="split", chunk=chunk)
            for one in made
            for chunk in (1, 4, 16)
            if one.warps == 4
        ]
        return [*made, *split, BlockConfiguration(elements=2048, warps=8, form="resident")]
    found: list[Configuration] = []
    for block_m, block_n in TILES:
        for block_k in (64, 128):
            for stages in (3, 4):
                for warps in (4, 8):
                    if shared_bytes(block_m, block_n, block_k, stages, bits) > SHARED_BYTES[architecture]:
                        continue
                    if not ACCUMULATORS[0] <= block_m * block_n // (32 * warps) <= ACCUMULATORS[1]:
                        continue
                    found.append(
                        ProductConfiguration(
                            block_m=block_m, block_n=block_n, block_k=block_k, warps=warps, stages=stages
                        )
                    )
    return found


def shared_bytes(block_m: int, block_n: int, block_k: int, stages: int, bits: int) -> int:
    """Bytes of the operands in flight; with int4 a step holds two blocks of codes for one of weights."""
    return stages * block_k * ((2 if bits == 4 else 1) * block_m + block_n)
