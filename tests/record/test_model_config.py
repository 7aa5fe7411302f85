"""Where a configuration is silent, every reader takes the default of the diffusers class it names."""

from __future__ import annotations

import inspect

import diffusers
import pytest

from dq_deploy.errors import ModelError
from dq_deploy.record.model_config import CLASS_DEFAULTS, channels_of, sample_shape


@pytest.mark.parametrize("name", CLASS_DEFAULTS)
def test_the_defaults_are_diffusers_own(name):
    signature = inspect.signature(getattr(diffusers, name).__init__)
    for key, value in CLASS_DEFAULTS[name].items():
        assert signature.parameters[key].default == value, key


def test_shapes_of_a_silent_configuration():
    assert sample_shape({"_class_name": "UNet2DModel", "sample_size": [4, 6]}) == (3, 4, 6)
    assert sample_shape({"_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 9}) == (9, 8, 8)
    assert channels_of({"_class_name": "UNet2DModel", "in_channels": 1}, "out_channels") == 3


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, "sample_size"),
        ({"sample_size": True}, "sample_size"),
        ({"sample_size": 8, "in_channels": "3"}, "in_channels"),
    ],
)
def test_what_no_class_fills_in_is_named(changes, key):
    with pytest.raises(ModelError, match=f"config.json has {key}"):
        sample_shape({"_class_name": "UNet2DModel", **changes})
