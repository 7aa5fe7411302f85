"""A batch cut into shards: which inputs each draws, and the sum of their gradients in the order of the shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dq_deploy.calibration.sharding import Share
from dq_deploy.calibration.sharding.share import bounds_of

SEEDS_OF_AN_ITERATION = 1_000_003


class BatchDraws:
    """Which inputs an iteration is computed on.

    With one shard they are drawn one iteration after another. With several, each shard draws its part of the batch
    from its own inputs, by a seed of its own for each iteration; what is dropped and mixed comes from it too.

    Args:
        share: whose inputs they are.
        batch: inputs of an iteration.
        seed: of the draws.
        generator: of what is dropped and mixed.
    """

    def __init__(self, share: Share, batch: int, seed: int, generator: torch.Generator) -> None:
        self.share, self.batch, self.seed, self.generator = share, batch, seed, generator
        self._one_after_another = torch.Generator().manual_seed(seed)

    def of(self, shard: int, iteration: int) -> torch.Tensor:
        """Places of the drawn inputs in this process's arrays; each iteration once, in their order."""
        shards, own = self.share.workers.shards, self.share.own(shard)
        if shards == 1:
            return torch.randint(0, own.stop, (self.batch,), generator=self._one_after_another)
        filled = min(shards, self.share.count)  # the first ones, where there are fewer inputs than shards
        bounds = bounds_of(self.batch, filled)
        count = bounds[shard + 1] - bounds[shard] if shard < filled else 0
        self.generator.manual_seed((self.seed * SEEDS_OF_AN_ITERATION + iteration) * shards + shard)
        if not count:
            return torch.zeros(0, dtype=torch.int64)
        return torch.randint(own.start, own.stop, (count,), generator=self.generator)


def most_at_once(share: Share, batch: int) -> int:
    """Inputs of a batch that one shard has at most."""
    return -(-batch // min(share.workers.shards, share.count))


def sum_gradients(share: Share, parameters: Sequence[torch.nn.Parameter], backward: Callable[[int], float]) -> float:
    """Leave the batch's gradients in the parameters, and return its loss; both are the same in every process.

    Args:
        share: whose shards they are summed over.
        parameters: that are trained.
        backward: leaves the gradients of one shard in them, which have none before, and returns its part of the loss.
    """
    if share.workers.shards == 1:
        return backward(0)
    sizes = [parameter.numel() for parameter in parameters]

    def of_shard(shard: int) -> torch.Tensor:
        for parameter in parameters:
            parameter.grad = None
        loss = backward(shard)
        flat = parameters[0].new_zeros(sum(sizes) + 1, requires_grad=False)
        for place, parameter in zip(flat.split([*sizes, 1]), parameters, strict=False):
            if parameter.grad is not None:
                place.copy_(parameter.grad.reshape(-1))
        flat[-1] = loss
        return flat

    total = share.workers.ordered_sum(of_shard)
    for place, parameter in zip(total.split([*sizes, 1]), parameters, strict=False):
        parameter.grad = place.view_as(parameter)
    return float(total[-1])
