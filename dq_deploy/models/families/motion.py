"""AnimateDiff's UNet with one text a sample, its layers called by position.

diffusers' pipeline gives this class a text for every frame of every sample, all of one sample's alike, so that the
text's leading axis is no batch. Here a text a sample is enough, and is repeated inside; a text a frame is taken too.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

from dq_deploy.models.families.stand_in import CalledByName

TEXT = "encoder_hidden_states"


def with_text_a_sample(module: torch.nn.Module) -> torch.nn.Module:
    """The same UNetMotionModel, which repeats its texts for the frames of a sample [B, C, frames, height, width]."""
    for child in list(module.modules()):
        if isinstance(child, AnimateDiffTransformer3D):
            child.proj_in, child.proj_out = CalledByName(child.proj_in), CalledByName(child.proj_out)
    module.register_forward_pre_hook(_repeat, with_kwargs=True)
    return module


def _repeat(
    _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = dict(zip(("sample", "timestep", TEXT), args, strict=False)) | kwargs
    sample, text = given["sample"], given[TEXT]
    if text.shape[0] == sample.shape[0]:
        given[TEXT] = text.repeat_interleave(sample.shape[2], dim=0)
    return args[3:], given
