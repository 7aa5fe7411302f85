"""Sums over what all calibration inputs gave, a few of them at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from dq_deploy.methods.blocks.nested_values import Gathered
from dq_deploy.methods.blocks.storage import Room
from dq_deploy.methods.ranges.step_ranges import batches

AT_ONCE_BYTES = 1 << 26


def pieces_of(room: Room) -> Iterator[tuple[slice, torch.Tensor]]:
    """Entries of a tensor of all samples, in turn."""
    values = room.values
    each = max(1, values[:1].numel() * values.element_size())
    for chunk in batches(len(values), max(1, AT_ONCE_BYTES // each)):
        yield chunk, room.take(chunk)


def mean_square(room: Room) -> float:
    """Mean of the squares, in float64."""
    total = 0.0
    for _, values in pieces_of(room):
        total += float(values.double().square().sum())
    return float(total / max(room.values.numel(), 1))


def all_finite(given: Gathered) -> bool:
    """Whether every value of the samples is finite."""
    rooms = [room for room in given.of_samples() if room.values.is_floating_point()]
    return all(bool(torch.isfinite(values).all()) for room in rooms for _, values in pieces_of(room))


def relative_error(
    outputs: Sequence[torch.Tensor] | Gathered, target: Gathered, index: torch.Tensor | None = None
) -> float:
    """Mean square error relative to the target's mean square, the mean of what a block gives.

    Args:
        outputs: of the block, for all inputs or for some of them.
        target: for all inputs.
        index: which inputs the outputs are of; None for all.
    """
    errors = []
    rooms = outputs.of_samples() if isinstance(outputs, Gathered) else [_room_of(value) for value in outputs]
    for output, wanted in zip(rooms, target.of_samples(), strict=True):
        error = square = 0.0
        for chunk, given in pieces_of(output):
            right = wanted.take(chunk if index is None else index[chunk]).double()
            error += float((given.double() - right).square().sum())
            square += float(right.square().sum())
        errors.append(error / (square or 1.0))
    return sum(errors) / len(errors)


def _room_of(value: torch.Tensor) -> Room:
    return Room(values=value.cpu(), device=str(value.device))
