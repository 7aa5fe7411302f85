"""What stands in for a layer of diffusers computes the same and reads diffusers' own weights."""

from __future__ import annotations

import pytest
import torch

from dq_deploy.models.families.stand_in import INNER, CalledByName, InnerState, RowConvolution, with_rows


@pytest.mark.parametrize("given", [{}, {"stride": 2, "padding": 2}, {"dilation": 2, "groups": 2, "bias": False}])
def test_a_convolution_of_one_dimension_is_one_of_an_image_one_row_high(given):
    torch.manual_seed(0)
    old = torch.nn.Conv1d(4, 6, 3, **given)
    x = torch.randn(2, 4, 11)
    torch.testing.assert_close(RowConvolution(old)(x), old(x))


def test_a_state_of_diffusers_names_fits_the_changed_module():
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Conv1d(3, 4, 5), torch.nn.Linear(7, 2))
    state = dict(plain.state_dict())
    changed = with_rows(torch.nn.Sequential(torch.nn.Conv1d(3, 4, 5), CalledByName(torch.nn.Linear(7, 2))))
    changed.load_state_dict(dict(InnerState(state, changed)))
    x = torch.randn(2, 3, 11)
    torch.testing.assert_close(changed(x), plain(x))
    assert next(name for name, _ in changed.named_parameters()) == f"0.{INNER}.weight"


def test_a_convolution_that_pads_otherwise_stays():
    module = with_rows(torch.nn.Sequential(torch.nn.Conv1d(3, 4, 5, padding="same"), torch.nn.Conv1d(3, 4, 5)))
    assert [type(child).__name__ for child in module] == ["Conv1d", "RowConvolution"]
