"""Sizes of a denoiser's inputs that vary from call to call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dq_deploy.errors import InputError
from dq_deploy.record import BATCH as BATCH

HEIGHT, WIDTH, TOKENS = "height", "width", "tokens"

CLIP_TOKENS = 77
"""Length of a text as CLIP's encoders give it: what a default call has where nobody says another."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Name, numpy dtype name and shape of a denoiser's input or output.

    A name in the shape is a size that varies: `"B"` the batch, `"tokens"` the length of a text.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


def sized(shape: Sequence[int | str], batch: int, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an input.

    Args:
        shape: sizes, and names of those that vary.
        batch: samples.
        sizes: of the axes that vary, by name.

    Raises:
        InputError: a size that varies has no value.
    """
    known = {BATCH: batch, **sizes}
    missing = [size for size in shape if isinstance(size, str) and size not in known]
    if missing:
        raise InputError(f"got no value of the size {missing[0]}, expected one; sizes given: {sorted(sizes)}")
    return tuple(known[size] if isinstance(size, str) else size for size in shape)


def varying_axes(specs: Sequence[TensorSpec]) -> dict[str, tuple[str, int]]:
    """Name of an input and axis where each size that varies can be read, the batch left out."""
    found: dict[str, tuple[str, int]] = {}
    for spec in specs:
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str) and size != BATCH:
                found.setdefault(size, (spec.name, axis))
    return found
