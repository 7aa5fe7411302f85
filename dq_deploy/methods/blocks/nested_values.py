"""Tensors inside the arguments and outputs of a block, and what all calibration inputs gave of them.

A block of a transformer takes and gives several tensors, some in tuples or dicts, and some that all samples share, as
the angles of a rotary embedding. What belongs to the samples is told by its leading axis, which grows with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from dq_deploy.methods.blocks.storage import BlockStore, Room

Nested = Any
"""A tensor, or tuples, lists and dicts of them and of other values."""


def tensors_in(value: Nested) -> Iterator[torch.Tensor]:
    """The tensors in a value, in order."""
    return (leaf for leaf in _leaves(value) if isinstance(leaf, torch.Tensor))


def mapped(change: Callable[..., Any], value: Nested, *others: Nested) -> Nested:
    """The value with every innermost entry changed; others have the same form and are given beside it."""
    if isinstance(value, (tuple, list)):
        return type(value)([mapped(change, *entries) for entries in zip(value, *others, strict=True)])
    if isinstance(value, dict):
        return {key: mapped(change, entry, *(other[key] for other in others)) for key, entry in value.items()}
    return change(value, *others)


def copied(value: Nested) -> Nested:
    """The value with tensors of its own: some models change in place what a block gave."""
    return mapped(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, value)


def entries_of(value: Nested) -> tuple[int, ...]:
    """Size of the leading axis of each tensor in a value; 0 where it has no axis."""
    return tuple(tensor.shape[0] if tensor.ndim else 0 for tensor in tensors_in(value))


@dataclass(frozen=True, kw_only=True, eq=False)
class OfSamples:
    """A tensor of all samples.

    Attributes:
        room: of its values, [N, ...], or [N, k, ...] where its leading axis holds k entries a sample.
        folded: whether it does.
    """

    room: Room
    folded: bool

    def take(self, index: torch.Tensor | slice) -> torch.Tensor:
        """The tensor of some samples, as the module has it."""
        chosen = self.room.take(index)
        return chosen.flatten(0, 1) if self.folded else chosen


@dataclass(frozen=True, kw_only=True, eq=False)
class Gathered:
    """A block's arguments or outputs for all calibration inputs; what samples share is kept once.

    Attributes:
        form: as the module has it, with `OfSamples` where a tensor belongs to the samples.
    """

    form: Nested

    def take(self, index: torch.Tensor | slice) -> Nested:
        """The value for some samples."""
        return mapped(lambda leaf: leaf.take(index) if isinstance(leaf, OfSamples) else leaf, self.form)

    def of_samples(self) -> list[Room]:
        """The tensors of the samples, [N, ...] each."""
        return [leaf.room for leaf in _leaves(self.form) if isinstance(leaf, OfSamples)]


def _leaves(value: Nested) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for entry in value:
            yield from _leaves(entry)
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _leaves(entry)
    else:
        yield value


IN_MEMORY = BlockStore()


def gathered(
    pieces: Iterable[tuple[slice, Nested]], count: int, single: tuple[int, ...], store: BlockStore = IN_MEMORY
) -> Gathered:
    """All samples' values from chunks of them, of which only one is held beside the result.

    Args:
        pieces: the samples of each chunk, the first not smaller than the others, and its value.
        count: samples.
        single: `entries_of` the value of one sample.
        store: where the result is kept.
    """
    whole: Nested = None
    for number, (chunk, piece) in enumerate(pieces):
        size = chunk.stop - chunk.start
        if not number:
            singles = iter(single)
            whole = mapped(lambda leaf: _room(leaf, count, size, singles, store), piece)  # noqa: B023 - used at once
        mapped(lambda leaf, room: _fill(leaf, room, chunk), piece, whole)  # noqa: B023
    return Gathered(form=whole)


def _room(leaf: Any, count: int, size: int, singles: Iterator[int], store: BlockStore) -> Any:
    """Room for a tensor of the samples; anything else as it is."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    entries = next(singles)
    if not entries or leaf.shape[0] != entries * size:
        return leaf
    shape = (count, *leaf.shape[1:]) if entries == 1 else (count, entries, *leaf.shape[1:])
    return OfSamples(room=store.room(shape, leaf), folded=entries != 1)


def _fill(leaf: Any, room: Any, chunk: slice) -> None:
    if isinstance(room, OfSamples):
        room.room.fill(chunk, leaf.reshape(room.room.values[chunk].shape))
