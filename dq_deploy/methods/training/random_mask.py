"""Random masks at the speed of memory: a byte a value."""

from __future__ import annotations

from math import prod

import torch


def random_mask(shape: tuple[int, ...], share: float, generator: torch.Generator | None) -> torch.Tensor:
    """Booleans of a shape, each true with the probability `share` to the nearest 1/256.

    Eight values come from one draw of 64 bits: `bernoulli_` takes as long as the convolution beside it.
    """
    below = round(share * 256)
    if below >= 256:
        return torch.ones(shape, dtype=torch.bool)
    count = prod(shape)
    words = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return (words.view(torch.uint8)[:count] < below).reshape(shape)
