"""Sums over what all calibration inputs gave, a few of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from dq_deploy.calibration.sharding import Share
from dq_deploy.methods.blocks.nested_values import Gathered
from dq_deploy.methods.blocks.storage import Room
from dq_deploy.methods.ranges.step_ranges import batches

AT_ONCE_BYTES = 1 << 26


def pieces_of(room: Room, part: slice = slice(None)) -> Iterator[tuple[slice, torch.Tensor]]:
    """Entries of a tensor of all samples, or a part of them, in turn."""
    values = room.values
    start, stop, _ = part.indices(len(values))
    each = max(1, values[:1].numel() * values.element_size())
    for chunk in batches(stop - start, max(1, AT_ONCE_BYTES // each)):
        moved = slice(start + chunk.start, start + chunk.stop)
        yield moved, room.take(moved)


def mean_squares(rooms: Sequence[Room], share: Share) -> list[float]:
    """Mean of the squares of each tensor over all processes' samples, in float64."""

    def of_shard(shard: int) -> list[tuple[float, int]]:
        found = []
        for room in rooms:
            total, count = 0.0, 0
            for _, values in pieces_of(room, share.own(shard)):
                total += float(values.double().square().sum())
                count += values.numel()
            found.append((total, count))
        return found

    shards = share.of_shards(of_shard)
    sums = [_summed([found[i] for found in shards]) for i in range(len(rooms))]
    return [float(total / max(count, 1)) for total, count in sums]


def all_finite(given: Gathered, share: Share) -> bool:
    """Whether every value of all processes' samples is finite."""
    rooms = [room for room in given.of_samples() if room.values.is_floating_point()]

    def here() -> bool:
        return all(bool(torch.isfinite(values).all()) for room in rooms for _, values in pieces_of(room))

    return all(share.workers.everywhere(here))


def relative_error(outputs: Gathered, target: Gathered, share: Share) -> float:
    """Mean square error relative to the target's, over all processes' samples; the mean of a block's tensors.

    Args:
        outputs: of the block.
        target: the same of the float block.
        share: which of all samples they are of.
    """
    return _relative_error(share, lambda shard: (outputs.of_samples(), share.own(shard), None), target)


def relative_error_at(
    outputs: Callable[[int], Sequence[torch.Tensor]],
    target: Gathered,
    share: Share,
    index: Callable[[int], torch.Tensor],
) -> float:
    """As `relative_error`, of some samples.

    Args:
        outputs: of a shard of this process, the tensors of what the block gives for its chosen samples.
        target: of the float block, for all samples.
        share: which of all samples these are of.
        index: the chosen samples of a shard.
    """

    def of_shard(shard: int) -> _Compared:
        return [_room_of(value) for value in outputs(shard)], slice(None), index(shard)

    return _relative_error(share, of_shard, target)


_Compared = tuple[list[Room], slice, torch.Tensor | None]
"""Tensors, the part of them that is compared, and which of the target's samples that is, where not the same."""


def _relative_error(share: Share, compared: Callable[[int], _Compared], target: Gathered) -> float:
    def of_shard(shard: int) -> list[tuple[float, float]]:
        rooms, part, index = compared(shard)
        if not rooms:  # none of this shard is compared
            return [(0.0, 0.0) for _ in target.of_samples()]
        found = []
        for output, wanted in zip(rooms, target.of_samples(), strict=True):
            error = square = 0.0
            for chunk, given in pieces_of(output, part):
                right = wanted.take(chunk if index is None else index[chunk]).double()
                error += float((given.double() - right).square().sum())
                square += float(right.square().sum())
            found.append((error, square))
        return found

    shards = share.of_shards(of_shard)
    sums = [_summed(of_tensor) for of_tensor in zip(*shards, strict=True)]
    return sum(error / (square or 1.0) for error, square in sums) / len(sums)


def _summed(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Sums of the first and the second numbers, in order."""
    first = second = 0.0
    for one, other in pairs:
        first += one
        second += other
    return first, second


def _room_of(value: torch.Tensor) -> Room:
    return Room(values=value.cpu(), device=str(value.device))
