"""The weight of a step is (1 - its share of the loss) to the power asked for."""

from __future__ import annotations

import pytest
import torch

from dq_deploy.methods.scaling.timestep_weighting import MOMENTUM, TimestepWeighting


def test_weights_are_one_less_the_share_of_the_loss_to_the_exponent() -> None:
    weighting = TimestepWeighting(4, exponent=20)
    weighting.note(torch.arange(4), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    expected = [0.9**20, 0.8**20, 0.7**20, 0.6**20]
    assert weighting.weights(torch.arange(4)).tolist() == pytest.approx(expected)


def test_losses_are_followed_by_an_exponential_mean_from_their_first_value() -> None:
    weighting = TimestepWeighting(2, exponent=1)
    weighting.note(torch.tensor([0, 0]), torch.tensor([1.0, 3.0]))
    assert weighting.loss.tolist() == [2.0, 0.0]
    weighting.note(torch.tensor([0, 1]), torch.tensor([4.0, 5.0]))
    assert weighting.loss.tolist() == pytest.approx([MOMENTUM * 2 + (1 - MOMENTUM) * 4, 5.0])


def test_there_are_at_most_twenty_bins_of_neighbouring_steps() -> None:
    assert TimestepWeighting(7, exponent=1).bins == 7
    weighting = TimestepWeighting(100, exponent=1)
    assert weighting.bins == 20
    assert weighting.bin_of(torch.tensor([0, 4, 5, 99])).tolist() == [0, 0, 1, 19]


@pytest.mark.parametrize(("steps", "exponent"), [(1, 20.0), (5, 0.0)])
def test_one_step_or_exponent_nought_weights_all_alike(steps: int, exponent: float) -> None:
    weighting = TimestepWeighting(steps, exponent)
    step = torch.arange(steps)
    assert weighting.weights(step).tolist() == [1.0] * steps
    weighting.note(step, torch.arange(steps) + 1.0)
    assert weighting.weights(step).tolist() == [1.0] * steps
