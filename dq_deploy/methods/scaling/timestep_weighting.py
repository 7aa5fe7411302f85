"""Adaptive timestep weighting (DMQ, ICCV 2025): steps whose loss is large anyway count for less.

    weight[t] = (1 - L_t / sum L)^exponent

where L_t is an exponential mean of the loss of step bin t.
"""

from __future__ import annotations

import torch

MOST_BINS = 20
MOMENTUM = 0.95


class TimestepWeighting:
    """Weights of samples by the step bin they are in.

    Attributes:
        bins: number of bins of neighbouring steps: `MOST_BINS`, or the steps where they are fewer.
        loss: [bins] exponential mean of each bin's loss, 0 before its first sample.
    """

    def __init__(self, steps: int, exponent: float) -> None:
        """`steps` step buckets; an exponent of 0 weights all samples alike."""
        self.steps = steps
        self.exponent = exponent
        self.bins = min(MOST_BINS, steps)
        self.loss = torch.zeros(self.bins)
        self._seen = torch.zeros(self.bins, dtype=torch.bool)

    def bin_of(self, step: torch.Tensor) -> torch.Tensor:
        """Bin of each step bucket, int64."""
        return step * self.bins // self.steps

    def weights(self, step: torch.Tensor) -> torch.Tensor:
        """[B] weight of each sample at its step bucket; one where there is nothing to compare yet."""
        total = self.loss.sum()
        if self.bins == 1 or not bool(total > 0):
            return torch.ones(len(step))
        return (1 - self.loss / total).pow(self.exponent)[self.bin_of(step)]

    def note(self, step: torch.Tensor, loss: torch.Tensor) -> None:
        """Take in the losses [B] of samples at some step buckets."""
        bins = self.bin_of(step)
        count = torch.zeros(self.bins).index_add_(0, bins, torch.ones(len(step)))
        mean = torch.zeros(self.bins).index_add_(0, bins, loss.detach()) / count.clamp(min=1)
        followed = torch.where(self._seen, MOMENTUM * self.loss + (1 - MOMENTUM) * mean, mean)
        self.loss = torch.where(count > 0, followed, self.loss)
        self._seen |= count > 0
