"""Random masks: their share, and that a seed decides them."""

from __future__ import annotations

import pytest
import torch

from dq_deploy.methods.training.random_mask import random_mask


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_so_large_a_share_is_true(share: float) -> None:
    mask = random_mask((3, 41, 333), share, torch.Generator().manual_seed(0))
    assert mask.shape == (3, 41, 333)
    assert float(mask.float().mean()) == pytest.approx(share, abs=0.01)


def test_a_seed_decides_the_mask() -> None:
    masks = [random_mask((100,), 0.5, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
