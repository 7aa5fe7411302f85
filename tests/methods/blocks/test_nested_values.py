"""What all samples gave is kept sample by sample, and what they share is kept once."""

from __future__ import annotations

import torch

from dq_deploy.methods.blocks.nested_values import entries_of, gathered


def made(samples: torch.Tensor) -> tuple[object, ...]:
    """Two tensors of the samples, the second with three entries each, beside angles that they share and a number."""
    angles = torch.arange(8.0).reshape(4, 2)
    return samples[:, None], {"folded": samples.repeat_interleave(3)[:, None]}, (angles, None, 0.5)


def test_values_of_samples_are_taken_and_shared_ones_stay() -> None:
    every = torch.arange(10.0)
    chunks = (slice(0, 4), slice(4, 8), slice(8, 10))
    whole = gathered(((c, made(every[c])) for c in chunks), 10, entries_of(made(every[:1])))
    index = torch.tensor([7, 2])
    first, named, (angles, nothing, number) = whole.take(index)
    expected = made(every[index])
    assert torch.equal(first, expected[0])
    assert torch.equal(named["folded"], expected[1]["folded"])
    assert torch.equal(angles, expected[2][0])
    assert (nothing, number) == (None, 0.5)
    assert [tuple(room.values.shape) for room in whole.of_samples()] == [(10, 1), (10, 3, 1)]
