"""Configurations that `tune` tries: those that fit into shared memory and registers, near the best by arithmetic.

What is left out is what counting says is slower by more than `NEAR`: tiles that waste rows or columns, that leave
multiprocessors idle, or that read more from L2 than they multiply. Counting is not measuring, so the margin is wide.
"""

from __future__ import annotations

from collections.abc import Mapping

from dq_kernels.gpu.tune.configurations import (
    PRODUCTS,
    SHARED_BYTES,
    SM_COUNT,
    BlockConfiguration,
    Configuration,
    ProductConfiguration,
    fit_to_pitch,
    splits_for,
)

TILES = ((16, 64), (32, 64), (64, 64), (64, 128), (128, 16), (128, 64), (128, 128), (128, 256), (256, 128))
DEPTHS = ((64, 4), (128, 3))
"""Bytes of a step and steps in flight: 256 and 384 bytes of a row are on their way."""
ACCUMULATORS = (8, 128)
"""A thread, least and most: with fewer its loads are not paid for; with 128 the epilogue goes over half of the columns
at a time, and 180 to 221 registers are taken (docs/measured.md)."""
VALUES = (4, 32)
"""Of a float op's block a thread, least and most."""
LEAST_WARPS = 8
"""That a multiprocessor has to hold at once, so that some work while others wait."""
NEAR = 1.5
"""Counted time, as a multiple of the least, from which a configuration is not tried."""
MACS_PER_CYCLE = {80: 2048, 86: 1024, 89: 1024, 90: 4096, 100: 4096, 120: 1024}
"""int8 products of a multiprocessor (CUDA C++ programming guide; on 9.0 half of it, which is what a warp group waits
for)."""
L2_BYTES_PER_CYCLE = 64
"""Of a multiprocessor."""
RESIDENT_K, SPLIT_K, FILLING = 40960, 16384, 256
"""Values of a group up to which it may stay in registers, from which it may be split, and groups that fill a GPU."""


def candidates(
    op: str, architecture: int, bits: int = 8, facts: Mapping[str, int] | None = None, pitch: int = 0
) -> list[Configuration]:
    """What is worth measuring for an op.

    Args:
        op: one of the six.
        architecture: of `ARCHITECTURES`.
        bits: of the weights of a product.
        facts: of the shape, as `configurations.choose` has them; None leaves nothing out for the shape.
        pitch: bytes of a weight row; 0 where it is not known.
    """
    if op == "group_norm_silu_quantize":
        return list(group_norm_candidates(facts or {"m": FILLING, "k": SPLIT_K + 1}))
    if op not in PRODUCTS:
        return list(block_candidates())
    found = product_candidates(architecture, bits)
    if facts is None:
        return list(found)
    found = list(dict.fromkeys(fit_to_pitch(one, pitch) if pitch else one for one in found))
    counted = {one: counted_cycles(one, architecture, facts) for one in found}
    return [one for one in found if counted[one] <= NEAR * min(counted.values())]


def product_candidates(architecture: int, bits: int) -> list[ProductConfiguration]:
    """Configurations of a product that a multiprocessor holds."""
    found = []
    for block_m, block_n in TILES:
        for block_k, stages in DEPTHS:
            for warps in (4, 8):
                shared = shared_bytes(block_m, block_n, block_k, stages, bits)
                held = SHARED_BYTES[architecture] // shared * warps
                if held < LEAST_WARPS or not within(block_m * block_n // (32 * warps), ACCUMULATORS):
                    continue
                found.append(
                    ProductConfiguration(block_m=block_m, block_n=block_n, block_k=block_k, warps=warps, stages=stages)
                )
    return found


def counted_cycles(one: ProductConfiguration, architecture: int, facts: Mapping[str, int]) -> float:
    """Cycles of a product by what is multiplied and what is read from L2, programs in whole waves."""
    m, n = facts["m"], facts["n"]
    steps = -(-facts["k"] // (one.block_k * (2 if facts.get("bits") == 4 else 1)))
    splits = splits_for(one, architecture, m, n, steps)
    programs = -(-m // one.block_m) * -(-n // one.block_n) * splits
    waves = -(-programs // SM_COUNT[architecture])
    multiplied = one.block_m * one.block_n / MACS_PER_CYCLE[architecture]
    read = (one.block_m + one.block_n) / L2_BYTES_PER_CYCLE
    return waves * -(-steps // splits) * one.block_k * max(multiplied, read)


def block_candidates() -> list[BlockConfiguration]:
    """Blocks of an op that reads each value once."""
    sizes = [(elements, warps) for elements in (512, 1024, 2048, 4096, 8192) for warps in (2, 4, 8)]
    return [BlockConfiguration(elements=e, warps=w) for e, w in sizes if within(e // (32 * w), VALUES)]


def group_norm_candidates(facts: Mapping[str, int]) -> list[BlockConfiguration]:
    """Forms of a group norm that fit its groups, and how many there are."""
    values, many = facts["k"], facts["m"] >= FILLING
    found = []
    if values <= RESIDENT_K:
        found.append(BlockConfiguration(elements=2048, warps=8, form="resident"))
    if values <= SPLIT_K or many:
        found += [BlockConfiguration(elements=e, warps=w) for e in (1024, 2048, 4096) for w in (4, 8)]
    if values > SPLIT_K:
        sizes = [(elements, chunk) for elements in (1024, 2048, 4096) for chunk in (4, 8, 16)]
        found += [BlockConfiguration(elements=e, warps=4, form="split", chunk=c) for e, c in sizes]
    return found


def within(value: int, bounds: tuple[int, int]) -> bool:
    """Whether a value lies in bounds that are both allowed."""
    return bounds[0] <= value <= bounds[1]


def shared_bytes(block_m: int, block_n: int, block_k: int, stages: int, bits: int) -> int:
    """Bytes of the operands in flight; with int4 a step holds two blocks of codes for one of weights."""
    return stages * block_k * ((2 if bits == 4 else 1) * block_m + block_n)
