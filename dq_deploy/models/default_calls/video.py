"""The default calls of the video models: CogVideoX, Wan, LTX, Stable Video Diffusion and AnimateDiff."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dq_deploy.errors import ModelError
from dq_deploy.models.default_calls.parts import (
    CallParts,
    channels_out,
    rotations,
    sample_sizes,
    tensor,
    whole,
    with_default,
)
from dq_deploy.models.sizes import CLIP_TOKENS, FRAMES, HEIGHT, TOKENS, WIDTH
from dq_deploy.record import BATCH, CallInput
from dq_deploy.record.model_config import value_of

OFFSET = 2.0
"""What CogVideoX's pipelines from a picture give as `ofs`, one number for all samples."""

WAN = {FRAMES: 21, HEIGHT: 60, WIDTH: 104}
"""Latent of Wan's 81 frames of 480x832, which its configuration does not say."""

WAN_TOKENS = 512
WAN_PICTURE_TOKENS = 257
"""CLIP's tokens of one picture."""

LTX = {FRAMES: 21, HEIGHT: 16, WIDTH: 22}
"""Latent of LTX's 161 frames of 512x704."""

LTX_TOKENS = 128
SVD_LATENT = {HEIGHT: 72, WIDTH: 128}
"""Latent of 576x1024 pixels."""

SVD_NUMBERS = 3
"""Frames a second, how much moves, and noise of the first picture."""

MOTION_LATENT = {FRAMES: 16, HEIGHT: 64, WIDTH: 64}
"""Latent of AnimateDiff's 16 frames of 512x512."""


def cogvideox_parts(config: Mapping[str, Any], given: Mapping[str, int]) -> CallParts:
    """Latents [B, frames, C, height, width], text, timestep, and cosines and sines of the places where it takes them.

    The size is fixed: places of tokens are given from outside, or learned for one size.
    """
    over = value_of(config, "patch_size_t") or 1
    frames = (whole(config, "sample_frames") - 1) // whole(config, "temporal_compression_ratio") + 1
    frames = -(-frames // over) * over  # the pipeline adds frames in front
    size = with_default(
        given, frames=frames, height=whole(config, "sample_height"), width=whole(config, "sample_width")
    )
    sides = (size[HEIGHT], size[WIDTH])
    inputs = [
        tensor("hidden_states", size[FRAMES], whole(config, "in_channels"), *sides),
        tensor("encoder_hidden_states", whole(config, "max_text_seq_length"), whole(config, "text_embed_dim")),
        tensor("timestep"),
    ]
    if value_of(config, "ofs_embed_dim") is not None:
        inputs.append(CallInput(name="ofs", dtype="float32", shape=(1,), limits=(OFFSET, OFFSET)))
    if value_of(config, "use_rotary_positional_embeddings"):
        patch = whole(config, "patch_size")
        tokens = size[FRAMES] // over * (sides[0] // patch) * (sides[1] // patch)
        inputs += rotations("image_rotary_emb", tokens, whole(config, "attention_head_dim"))
    return CallParts(inputs=tuple(inputs), sizes={}, output=(BATCH, size[FRAMES], channels_out(config), *sides))


def wan_parts(config: Mapping[str, Any], given: Mapping[str, int]) -> CallParts:
    """Latents [B, C, frames, height, width], timestep, text, and the first picture's embedding where it takes one."""
    inputs = [
        tensor("hidden_states", whole(config, "in_channels"), FRAMES, HEIGHT, WIDTH),
        tensor("timestep"),
        tensor("encoder_hidden_states", TOKENS, whole(config, "text_dim")),
    ]
    if value_of(config, "image_dim") is not None:
        pictures = 1 if value_of(config, "pos_embed_seq_len") is None else 2  # first and last frame
        inputs.append(tensor("encoder_hidden_states_image", pictures * WAN_PICTURE_TOKENS, whole(config, "image_dim")))
    return CallParts(
        inputs=tuple(inputs),
        sizes=with_default(given, **WAN, tokens=WAN_TOKENS),
        output=(BATCH, channels_out(config), FRAMES, HEIGHT, WIDTH),
    )


def ltx_parts(config: Mapping[str, Any], given: Mapping[str, int]) -> CallParts:
    """Packed latents, text with its mask, timestep, and the video's size as plain numbers, which fix it."""
    size = with_default(given, **LTX)
    count = size[FRAMES] * size[HEIGHT] * size[WIDTH]
    return CallParts(
        inputs=(
            tensor("hidden_states", count, whole(config, "in_channels")),
            tensor("encoder_hidden_states", TOKENS, whole(config, "caption_channels")),
            tensor("timestep"),
            tensor("encoder_attention_mask", TOKENS, dtype="int64", limits=(0, 1)),
        ),
        sizes=with_default(given, tokens=LTX_TOKENS),
        output=(BATCH, count, channels_out(config)),
        constants={"num_frames": size[FRAMES], "height": size[HEIGHT], "width": size[WIDTH]},
    )


def svd_parts(config: Mapping[str, Any], given: Mapping[str, int]) -> CallParts:
    """Latents [B, frames, C, height, width], timestep, a picture's embedding, and three numbers of the video."""
    size = with_default(given, frames=whole(config, "num_frames"), **SVD_LATENT)
    return CallParts(
        inputs=(
            tensor("sample", FRAMES, whole(config, "in_channels"), HEIGHT, WIDTH),
            tensor("timestep"),
            tensor("encoder_hidden_states", 1, whole(config, "cross_attention_dim")),
            tensor("added_time_ids", SVD_NUMBERS),
        ),
        sizes=size,
        output=(BATCH, FRAMES, channels_out(config), HEIGHT, WIDTH),
    )


def motion_parts(config: Mapping[str, Any], given: Mapping[str, int]) -> CallParts:
    """Latents [B, C, frames, height, width], timestep, and one text a sample, which is repeated for every frame."""
    if value_of(config, "encoder_hid_dim_type") is not None or value_of(config, "addition_embed_type") is not None:
        raise ModelError(
            "config.json asks for a picture's embedding or added conditions, expected a UNetMotionModel with text alone"
        )
    sides = dict(MOTION_LATENT)
    if value_of(config, "sample_size") is not None:
        sides |= sample_sizes(config, {})
    return CallParts(
        inputs=(
            tensor("sample", whole(config, "in_channels"), FRAMES, HEIGHT, WIDTH),
            tensor("timestep"),
            tensor("encoder_hidden_states", TOKENS, whole(config, "cross_attention_dim")),
        ),
        sizes=with_default(given, **sides, tokens=CLIP_TOKENS),
        output=(BATCH, channels_out(config), FRAMES, HEIGHT, WIDTH),
    )
