"""Sizes of a denoiser's inputs that vary from call to call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dq_deploy.errors import InputError
from dq_deploy.record import BATCH as BATCH

HEIGHT, WIDTH, TOKENS = "height", "width", "tokens"
FRAMES, LENGTH = "frames", "length"

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


def multiple_name(base: str, times: int) -> str:
    """Name of the size that is always so many times a named one, as `height_times_8`."""
    return f"{base}_times_{times}"


def part_name(base: str, known: Sequence[int], sizes: Sequence[int]) -> str | None:
    """Name of what is always the k-th part of a named size, or k times as long, as `height_2` or `height_times_8`.

    Args:
        base: the named size; only `height` and `width` have parts.
        known: what it was in each of some calls.
        sizes: what the other was in them.

    Returns:
        The name, None where it is neither.
    """
    if base not in (HEIGHT, WIDTH):
        return None
    down, up = known[0] // sizes[0], sizes[0] // known[0]
    if down > 1 and all(size * down == whole for size, whole in zip(sizes, known, strict=True)):
        return f"{base}_{down}"
    if up > 1 and all(size == whole * up for size, whole in zip(sizes, known, strict=True)):
        return multiple_name(base, up)
    return None


def following(sizes: Mapping[str, int], asked: Mapping[str, int]) -> dict[str, int]:
    """Sizes with those that are asked for, and with them the parts and multiples of these that were not.

    Args:
        sizes: by name.
        asked: likewise.

    Raises:
        InputError: a side does not go evenly into its part.
    """
    found = {**sizes, **asked}
    for name in sizes.keys() - asked.keys():
        base, _, number = name.partition("_")
        times = number.removeprefix("times_")
        if base not in (HEIGHT, WIDTH) or base not in asked or not times.isdigit():
            continue
        if times == number and asked[base] % int(times):
            raise InputError(f"got {base} {asked[base]}, expected a multiple of {times}: there is a size {name}")
        found[name] = asked[base] * int(times) if times != number else asked[base] // int(times)
    return found


def varying_axes(specs: Sequence[TensorSpec]) -> dict[str, tuple[str, int]]:
    """Name of an input and axis where each size that varies can be read, the batch left out."""
    found: dict[str, tuple[str, int]] = {}
    for spec in specs:
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str) and size != BATCH:
                found.setdefault(size, (spec.name, axis))
    return found
