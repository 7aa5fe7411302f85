"""What a call of a pipeline refuses before anything runs."""

from __future__ import annotations

import pytest

from dq_deploy.errors import OptionError
from dq_deploy.models.pipeline import PipelineCall


@pytest.mark.parametrize("sizes", [{"height": 64}, {"width": 64}])
def test_a_height_goes_with_a_width(sizes):
    with pytest.raises(OptionError, match="expected both"):
        PipelineCall(**sizes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"strength": 1.5}, "strength is 1.5, expected a number from 0 to 1"),
        ({"guidance": float("nan")}, "guidance is nan, expected a finite number"),
        ({"prompts": ("a house", " ")}, "prompt 2 is empty"),
        ({"prompts": ("a" * 1_000_000,)}, "prompt 1 has 1000000 characters"),
    ],
)
def test_values_out_of_range_are_named(options, message):
    with pytest.raises(OptionError, match=message):
        PipelineCall(**options)
