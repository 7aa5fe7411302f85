"""Shapes an engine is built for: smallest, best and largest of each input, as text and checked against the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dq_deploy.errors import OptionError
from dq_deploy.manifest.values import EngineManifest, SizeRange
from dq_deploy.models.sizes import BATCH, CLIP_TOKENS, TOKENS

Profile = Mapping[str, SizeRange]
"""Smallest, best and largest shape of each input, by its name."""

BATCHES = (1, 1, 8)
"""Smallest, best and largest batch of a denoiser without conditions."""
GUIDED_BATCHES = (1, 2, 8)
"""The same with conditions."""
UNCONDITIONAL = frozenset({"sample", "hidden_states", "timestep"})
_EXAMPLE = "such as sample:1x4x64x64..2x4x64x64..8x4x96x96"


def profile_from_texts(texts: Iterable[str], manifest: EngineManifest) -> Profile:
    """One optimization profile for all inputs of an engine.

    A free dimension that several inputs share has one range in all of them. One that no text gives is best at the size
    of the call: the batch 1 to 8 and best at 1, text tokens from 1 to twice as many, any other size from half to one
    and a half times as much, in the multiples that the graph needs. Where an earlier version made the manifest, the
    image has the model's sample size and text 77 tokens.

    Args:
        texts: `name:MIN..OPT..MAX` with shapes such as `1x4x64x64`, or `name:SHAPE` for one shape only; several in
            one text are separated by commas.
        manifest: of the ONNX file; its `inputs` say which dimensions are free.

    Raises:
        OptionError: no such input, another rank, a fixed dimension with another size, min > opt or opt > max, or two
            inputs that disagree on a common dimension.
    """
    inputs = {tensor.name: list(tensor.shape) for tensor in manifest.inputs}
    given = _given(texts, inputs)
    ranges = _ranges(given, inputs)
    profile = {}
    for name, dims in inputs.items():
        rows = [
            ranges[dim] if dim in ranges else _default(name, index, dim, inputs, manifest)
            for index, dim in enumerate(dims)
        ]
        least, best, most = (tuple(row[i] for row in rows) for i in range(3))
        profile[name] = SizeRange(min=least, opt=best, max=most)
    return profile


def _given(texts: Iterable[str], inputs: Mapping[str, list[Any]]) -> dict[str, list[list[int]]]:
    given: dict[str, list[list[int]]] = {}
    for entry in (piece.strip() for text in texts for piece in text.split(",")):
        name, colon, shapes = entry.rpartition(":")
        if not colon or not name:
            raise OptionError(f"`shapes` got {entry!r}, expected NAME:MIN..OPT..MAX {_EXAMPLE}")
        if name not in inputs:
            raise OptionError(f"`shapes` names input {name!r}, the engine has {', '.join(inputs)}; use one of these")
        if name in given:
            raise OptionError(f"`shapes` names input {name!r} twice, expected one range for each input; drop one")
        given[name] = _three_shapes(name, shapes, inputs[name])
    return given


def _three_shapes(name: str, text: str, dims: Sequence[Any]) -> list[list[int]]:
    shapes = [_shape(name, piece) for piece in text.split("..")]
    if len(shapes) not in (1, 3):
        raise OptionError(
            f"`shapes` for {name} has {len(shapes)} shapes, expected MIN..OPT..MAX or one shape, {_EXAMPLE}"
        )
    shapes = shapes if len(shapes) == 3 else shapes * 3
    for shape in shapes:
        if len(shape) != len(dims):
            raise OptionError(
                f"`shapes` for {name} has a shape of {len(shape)} dimensions, the engine takes {len(dims)}: "
                f"{_dims_text(dims)}"
            )
        for index, (size, dim) in enumerate(zip(shape, dims, strict=True)):
            if not isinstance(dim, str) and size != dim:
                raise OptionError(
                    f"`shapes` for {name} has {size} in dimension {index}, which is fixed at {dim} in this file: "
                    f"{_dims_text(dims)}"
                )
    for index, (low, best, high) in enumerate(zip(*shapes, strict=True)):
        if not low <= best <= high:
            raise OptionError(
                f"`shapes` for {name} has {low}..{best}..{high} in dimension {index}, expected min <= opt <= max"
            )
    return shapes


def _shape(name: str, text: str) -> list[int]:
    pieces = text.strip().split("x")
    # TensorRT's sizes are 64-bit, but a tensor of 2^31 elements or more in one dimension is a slip of the finger
    if not all(p.isascii() and p.isdecimal() and 0 < int(p) < 2**31 for p in pieces):
        raise OptionError(f"`shapes` for {name} got {text!r}, expected positive sizes joined by x, {_EXAMPLE}")
    return [int(p) for p in pieces]


def _ranges(given: Mapping[str, list[list[int]]], inputs: Mapping[str, list[Any]]) -> dict[Any, tuple[int, int, int]]:
    ranges: dict[Any, tuple[int, int, int]] = {}
    source: dict[str, str] = {}
    for name, shapes in given.items():
        for dim, row in zip(inputs[name], zip(*shapes, strict=True), strict=True):
            if not isinstance(dim, str):
                continue
            if ranges.setdefault(dim, row) != row:
                raise OptionError(
                    f"`shapes` gives dimension {dim} as {_row_text(ranges[dim])} for {source[dim]} and "
                    f"{_row_text(row)} for {name}, expected the same range"
                )
            source.setdefault(dim, name)
    return ranges


def _default(
    name: str, index: int, dim: Any, inputs: Mapping[str, list[Any]], manifest: EngineManifest
) -> tuple[int, int, int]:
    if not isinstance(dim, str):
        return (dim, dim, dim)
    if dim == BATCH or (index == 0 and manifest.sizes is None):
        # guidance runs a sample with its condition and one without
        guided = set(inputs) - UNCONDITIONAL
        return GUIDED_BATCHES if guided else BATCHES
    if dim in (manifest.sizes or {}):
        return _around(dim, manifest)
    sample = inputs.get("sample", [])
    size = manifest.model_config.get("sample_size")
    if dim in sample[2:] and size is not None:
        sizes = [size, size] if isinstance(size, int) else list(size)
        value = int(sizes[sample.index(dim) - 2])
        return (value, value, value)
    if name == "encoder_hidden_states" and index == 1:
        return (CLIP_TOKENS, CLIP_TOKENS, CLIP_TOKENS)
    raise OptionError(
        f"input {name} has the free dimension {dim} ({_dims_text(inputs[name])}) and nothing says its size; "
        f"give `shapes` {name}:MIN..OPT..MAX"
    )


def _around(dim: str, manifest: EngineManifest) -> tuple[int, int, int]:
    """Smallest, best and largest of a size that varies."""
    size, step = (manifest.sizes or {})[dim], (manifest.multiples or {}).get(dim, 1)
    least, most = (1, 2 * size) if dim == TOKENS else (size // 2, size * 3 // 2)
    return max(step, least // step * step), size, max(size, most // step * step)


def _dims_text(dims: Sequence[Any]) -> str:
    return "[" + ", ".join(str(d) for d in dims) + "]"


def _row_text(row: Sequence[int]) -> str:
    return "..".join(str(size) for size in row)
