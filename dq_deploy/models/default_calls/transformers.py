"""The default calls of the image transformers: DiT, PixArt, Stable Diffusion 3, FLUX, Hunyuan-DiT and Qwen-Image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dq_deploy.models.default_calls.parts import (
    CallParts,
    channels_out,
    class_labels,
    rotations,
    sample_sizes,
    tensor,
    whole,
    with_default,
)
from dq_deploy.models.sizes import HEIGHT, TOKENS, WIDTH
from dq_deploy.record import BATCH, CallInput
from dq_deploy.record.model_config import value_of

PIXART_TOKENS = 300
"""T5's text in PixArt-sigma; alpha cuts it at 120."""

SD3_TOKENS = 333
"""CLIP's 77 tokens in front of T5's 256."""

FLUX_TOKENS = 512
"""T5's text in FLUX-dev."""

FLUX_LATENT = 128
"""Sides of the latent of FLUX's default picture, which its configuration does not say."""

FLUX_PATCH = 2
"""Sides of the square of latent pixels that FLUX's pipelines make one token of."""

HUNYUAN_NUMBERS = 6
"""Sizes of the original and of the wanted picture, and the corner of the crop."""

QWEN_LATENT = 128
"""Sides of the latent of Qwen-Image's default picture, which its configuration does not say."""

QWEN_PATCH = 2
QWEN_TOKENS = 1024

ROPE_AXES = 3
"""Numbers that say where a token of FLUX is."""


def dit_parts(config: Mapping[str, Any], given: Mapping[str, int]) -> CallParts:
    """Latents, timestep and labels; the size is fixed, because the model puts its tokens back into a square.

    One label behind the last stands for none.
    """
    side = sample_sizes(config, given)
    latents = tensor("hidden_states", whole(config, "in_channels"), side[HEIGHT], side[WIDTH])
    return CallParts(
        inputs=(latents, tensor("timestep"), class_labels(whole(config, "num_embeds_ada_norm") + 1)),
        sizes={},
        output=(BATCH, channels_out(config), side[HEIGHT], side[WIDTH]),
    )


def pixart_parts(config: Mapping[str, Any], given: Mapping[str, int]) -> CallParts:
    """Latents, text with its mask, timestep, and the picture's size where the model is told it."""
    text = "cross_attention_dim" if value_of(config, "caption_channels") is None else "caption_channels"
    inputs = [
        tensor("hidden_states", whole(config, "in_channels"), HEIGHT, WIDTH),
        tensor("encoder_hidden_states", TOKENS, whole(config, text)),
        tensor("timestep"),
    ]
    told = value_of(config, "use_additional_conditions")
    if value_of(config, "sample_size") == 128 if told is None else told:  # as the class decides it
        inputs += [tensor("added_cond_kwargs.resolution", 2), tensor("added_cond_kwargs.aspect_ratio", 1)]
    inputs.append(tensor("encoder_attention_mask", TOKENS, dtype="int64", limits=(0, 1)))
    sizes = {**sample_sizes(config, given), **with_default(given, tokens=PIXART_TOKENS)}
    return CallParts(inputs=tuple(inputs), sizes=sizes, output=(BATCH, channels_out(config), HEIGHT, WIDTH))


def sd3_parts(config: Mapping[str, Any], given: Mapping[str, int]) -> CallParts:
    """Latents, text, pooled text and timestep."""
    inputs = (
        tensor("hidden_states", whole(config, "in_channels"), HEIGHT, WIDTH),
        tensor("encoder_hidden_states", TOKENS, whole(config, "joint_attention_dim")),
        tensor("pooled_projections", whole(config, "pooled_projection_dim")),
        tensor("timestep"),
    )
    sizes = {**sample_sizes(config, given), **with_default(given, tokens=SD3_TOKENS)}
    return CallParts(inputs=inputs, sizes=sizes, output=(BATCH, channels_out(config), HEIGHT, WIDTH))


def flux_parts(config: Mapping[str, Any], given: Mapping[str, int]) -> CallParts:
    """Packed latents, text, pooled text, timestep, the places of both kinds of tokens, and the guidance value.

    Its timesteps go from 0 to 1. `image_tokens` is what `height` and `width` of the latent give where they are given.
    """
    inputs = [
        tensor("hidden_states", "image_tokens", whole(config, "in_channels")),
        tensor("encoder_hidden_states", TOKENS, whole(config, "joint_attention_dim")),
        tensor("pooled_projections", whole(config, "pooled_projection_dim")),
        tensor("timestep", limits=(0, 1)),
        CallInput(name="img_ids", dtype="float32", shape=("image_tokens", ROPE_AXES)),
        CallInput(name="txt_ids", dtype="float32", shape=(TOKENS, ROPE_AXES)),
    ]
    if value_of(config, "guidance_embeds"):
        inputs.append(tensor("guidance"))
    height, width = given.get(HEIGHT, FLUX_LATENT), given.get(WIDTH, FLUX_LATENT)
    tokens = (height // FLUX_PATCH) * (width // FLUX_PATCH)
    return CallParts(
        inputs=tuple(inputs),
        sizes=with_default(given, image_tokens=tokens, tokens=FLUX_TOKENS),
        output=(BATCH, "image_tokens", channels_out(config)),
    )


def hunyuan_parts(config: Mapping[str, Any], given: Mapping[str, int]) -> CallParts:
    """Latents, timestep, both texts with their masks, the picture's size and style, and the places of the tokens.

    The size is fixed, because cosines and sines of the places are given from outside.
    """
    side, patch = sample_sizes(config, given), whole(config, "patch_size")
    inputs = [
        tensor("hidden_states", whole(config, "in_channels"), side[HEIGHT], side[WIDTH]),
        tensor("timestep"),
    ]
    for end, length, width in (
        ("", "text_len", "cross_attention_dim"),
        ("_t5", "text_len_t5", "cross_attention_dim_t5"),
    ):
        tokens = whole(config, length)
        inputs.append(tensor(f"encoder_hidden_states{end}", tokens, whole(config, width)))
        inputs.append(tensor(f"text_embedding_mask{end}", tokens, dtype="int64", limits=(0, 1)))
    if value_of(config, "use_style_cond_and_image_meta_size"):
        inputs += [tensor("image_meta_size", HUNYUAN_NUMBERS), tensor("style", dtype="int64", limits=(0, 0))]
    places = (side[HEIGHT] // patch) * (side[WIDTH] // patch)
    inputs += rotations("image_rotary_emb", places, whole(config, "attention_head_dim"))
    channels = whole(config, "in_channels") * (2 if value_of(config, "learn_sigma") else 1)
    return CallParts(inputs=tuple(inputs), sizes={}, output=(BATCH, channels, side[HEIGHT], side[WIDTH]))


def qwen_image_parts(config: Mapping[str, Any], given: Mapping[str, int]) -> CallParts:
    """Packed latents, text with its mask, and timesteps from 0 to 1; the picture's size is a plain number, so fixed."""
    height, width = (given.get(side, QWEN_LATENT) // QWEN_PATCH for side in (HEIGHT, WIDTH))
    inputs = [
        tensor("hidden_states", height * width, whole(config, "in_channels")),
        tensor("encoder_hidden_states", TOKENS, whole(config, "joint_attention_dim")),
        tensor("encoder_hidden_states_mask", TOKENS, dtype="int64", limits=(0, 1)),
        tensor("timestep", limits=(0, 1)),
    ]
    if value_of(config, "guidance_embeds"):
        inputs.append(tensor("guidance"))
    return CallParts(
        inputs=tuple(inputs),
        sizes=with_default(given, tokens=QWEN_TOKENS),
        output=(BATCH, height * width, QWEN_PATCH * QWEN_PATCH * whole(config, "out_channels")),
        constants={"img_shapes": [[[1, height, width]]]},
    )
