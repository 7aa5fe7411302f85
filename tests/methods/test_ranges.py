"""Ranges of steps: the lowest and highest value of all, or an exponential mean of each batch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dq_deploy.methods.ranges import StepRange


def test_momentum_follows_each_step_from_its_first_batch() -> None:
    seen = StepRange.empty(3, momentum=0.9)
    seen.add(torch.tensor([[-1.0, 2.0], [-3.0, 1.0], [-5.0, 5.0]]), np.array([0, 0, 2]), None)
    assert seen.low[[0, 2]].tolist() == [-3.0, -5.0]
    assert seen.high[[0, 2]].tolist() == [2.0, 5.0]
    assert np.isinf(seen.low[1])
    seen.add(torch.tensor([[-13.0, 12.0]]), np.array([0]), None)
    assert seen.low[0] == pytest.approx(0.9 * -3 + 0.1 * -13)
    assert seen.high[0] == pytest.approx(0.9 * 2 + 0.1 * 12)
    assert (seen.low[2], seen.high[2]) == (-5.0, 5.0)


def test_without_momentum_ranges_only_grow() -> None:
    seen = StepRange.empty(1)
    for value in (2.0, -4.0, 1.0):
        seen.add(torch.tensor([[value, 0.0]]), np.array([0]), None)
    assert (seen.low[0], seen.high[0]) == (-4.0, 2.0)


def test_a_group_has_the_ends_of_its_steps() -> None:
    seen = StepRange.empty(4)
    seen.add(torch.tensor([[-1.0, 1.0], [-2.0, 2.0], [-3.0, 3.0], [-4.0, 4.0]]), np.arange(4), None)
    low, high = seen.ends(np.array([0, 0, 1, 1]))
    assert (low.tolist(), high.tolist()) == ([-2.0, -4.0], [2.0, 4.0])
