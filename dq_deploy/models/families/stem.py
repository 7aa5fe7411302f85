"""A UNet2DModel whose first convolution is narrower than its first level, as DDIM's own network may be.

diffusers has one width for both. `stem_channels` in a configuration gives the first convolution and the sinusoids of
the timestep a width of their own; nothing else differs from diffusers' module, whose code runs unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import ModelError

if TYPE_CHECKING:
    import torch

KEY = "stem_channels"
"""Entry of config.json; no diffusers configuration has it."""


def unet2d_with_stem(config: Mapping[str, Any]) -> torch.nn.Module:
    """A UNet2DModel by its configuration without `_` keys, with the stem that it asks for.

    Raises:
        ModelError: the stem is no width, or goes with another embedding of the timestep than sinusoids.
    """
    from diffusers import UNet2DModel

    plain = {key: value for key, value in config.items() if key != KEY}
    width = config.get(KEY)
    module = UNet2DModel(**plain)
    if width is None:
        return module
    groups = module.conv_norm_out.num_groups
    if not isinstance(width, int) or isinstance(width, bool) or width < 1 or width % groups:
        raise ModelError(f"config.json has {KEY} {width!r}, expected a multiple of norm_num_groups {groups}")
    if module.config.time_embedding_type != "positional":
        raise ModelError(f"config.json has {KEY} with another time_embedding_type than positional; leave one out")
    _narrow(module, width)
    return module


def _narrow(module: Any, width: int) -> None:
    """Give the first convolution, the sinusoids and what reads them this width."""
    import torch
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps

    config = module.config
    module.conv_in = torch.nn.Conv2d(config.in_channels, width, kernel_size=3, padding=1)
    module.time_proj = Timesteps(width, config.flip_sin_to_cos, config.freq_shift)
    module.time_embedding = TimestepEmbedding(width, module.time_embedding.linear_1.out_features)
    first, last = module.down_blocks[0].resnets, module.up_blocks[-1].resnets
    first[0] = _resnet(first[0], width, config)
    last[-1] = _resnet(last[-1], last[-1].in_channels - config.block_out_channels[0] + width, config)


def _resnet(old: Any, in_channels: int, config: Any) -> torch.nn.Module:
    """The same residual block with other input channels."""
    from diffusers.models.resnet import ResnetBlock2D

    return ResnetBlock2D(
        in_channels=in_channels,
        out_channels=old.out_channels,
        temb_channels=old.time_emb_proj.in_features,
        eps=old.norm1.eps,
        groups=old.norm1.num_groups,
        dropout=config.dropout,
        time_embedding_norm=config.resnet_time_scale_shift,
        non_linearity=config.act_fn,
    )
