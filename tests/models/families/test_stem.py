"""A UNet2DModel may have a first convolution narrower than its first level."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dq_deploy.errors import ModelError
from dq_deploy.models import build_denoiser, default_call, quantizable_layers, skip_splits
from tests.tiny import tiny_config


def call_of_module(module):
    """The default call by a module's own configuration."""
    return default_call({**module.config, "_class_name": type(module).__name__})


def config(**changes):
    return {**tiny_config(), "block_out_channels": [16, 8], "time_embedding_dim": 32, "stem_channels": 8, **changes}


def test_the_first_convolution_and_the_last_skip_have_the_stem_s_width():
    module = build_denoiser("unet2d", config())
    sites = {site.name: site for site in quantizable_layers(module, default_call(config()))}
    assert sites["conv_in"].out_channels == 8
    assert sites["time_embedding.linear_1"].in_channels == 8
    assert sites["down_blocks.0.resnets.0.conv1"].in_channels == 8
    assert sites["down_blocks.0.resnets.0.conv_shortcut"].out_channels == 16
    assert sites["up_blocks.1.resnets.1.conv1"].in_channels == 16 + 8
    assert skip_splits(module, call_of_module(module))["up_blocks.1.resnets.1.conv1"] == 16


def test_it_is_diffusers_own_module_where_the_widths_are_the_same():
    torch.manual_seed(0)
    plain = build_denoiser("unet2d", tiny_config())
    same = build_denoiser("unet2d", {**tiny_config(), "stem_channels": 8})
    same.load_state_dict(plain.state_dict())
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, 8, 8), dtype=np.float32))
    assert torch.equal(plain(x, 7.0).sample, same(x, 7.0).sample)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"stem_channels": 6}, "stem_channels 6, expected a multiple of norm_num_groups 4"),
        ({"stem_channels": "8"}, "stem_channels '8', expected a multiple"),
        ({"time_embedding_type": "fourier"}, "another time_embedding_type"),
    ],
)
def test_a_stem_that_cannot_be_built_is_refused(changes, match):
    with pytest.raises(ModelError, match=match):
        build_denoiser("unet2d", config(**changes))
