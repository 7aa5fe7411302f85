"""Sizes of a denoiser's inputs that vary from call to call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dq_deploy.models.layers import TensorSpec

BATCH = "B"
TOKENS = "tokens"

EXAMPLE_SIZES: Mapping[str, int] = {TOKENS: 77}
"""What a size that varies is where nobody says it: in examples, and where work is counted. 77 is CLIP's text."""


def sized(shape: Sequence[int | str], batch: int, sizes: Mapping[str, int] = EXAMPLE_SIZES) -> tuple[int, ...]:
    """The shape of an input.

    Args:
        shape: sizes, and names of those that vary.
        batch: samples.
        sizes: of the axes that vary, by name.
    """
    known = {BATCH: batch, **sizes}
    return tuple(known[size] if isinstance(size, str) else size for size in shape)


def varying_axes(specs: Sequence[TensorSpec]) -> dict[str, tuple[str, int]]:
    """Name of an input and axis where each size that varies can be read, the batch left out."""
    found: dict[str, tuple[str, int]] = {}
    for spec in specs:
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str) and size != BATCH:
                found.setdefault(size, (spec.name, axis))
    return found
