"""The default calls of the sound models: Stable Audio, AudioLDM 2, and UNets of one dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dq_deploy.errors import ModelError
from dq_deploy.models.default_calls.parts import CallParts, channels_out, rotations, tensor, whole, with_default
from dq_deploy.models.default_calls.unet2d import sample_and_timestep
from dq_deploy.models.sizes import HEIGHT, LENGTH, TOKENS, WIDTH
from dq_deploy.record import BATCH
from dq_deploy.record.model_config import value_of

STABLE_AUDIO_TOKENS = 130
"""T5's 128 tokens, the second of the start and the second of the end."""

AUDIO_LATENT = {HEIGHT: 250, WIDTH: 16}
"""Latent of AudioLDM 2's 10 seconds: time by mel bands."""

AUDIO_TOKENS = 32
GENERATED_TOKENS = 8
"""Of the language model that AudioLDM 2 puts behind its texts."""


def stable_audio_parts(config: Mapping[str, Any], given: Mapping[str, int]) -> CallParts:
    """Latents [B, C, length], timestep, text, one global state, and cosines and sines of the places.

    The length is fixed, because the places are given from outside: one for each latent, and one for the global state.
    """
    length = given.get(LENGTH, whole(config, "sample_size"))
    return CallParts(
        inputs=(
            tensor("hidden_states", whole(config, "in_channels"), length),
            tensor("timestep", limits=(0, 1)),
            tensor("encoder_hidden_states", TOKENS, whole(config, "cross_attention_input_dim")),
            tensor("global_hidden_states", 1, whole(config, "global_states_input_dim")),
            *rotations("rotary_embedding", length + 1, whole(config, "attention_head_dim") // 2),
        ),
        sizes=with_default(given, tokens=STABLE_AUDIO_TOKENS),
        output=(BATCH, channels_out(config), length),
    )


def audioldm2_parts(config: Mapping[str, Any], given: Mapping[str, int]) -> CallParts:
    """Latents [B, C, time, mel bands], timestep, tokens that a language model gave, and T5's text with its mask."""
    widths = value_of(config, "cross_attention_dim")
    pair = [width for width in _flat(widths) if width is not None]
    if not isinstance(widths, (list, tuple)) or len(dict.fromkeys(pair)) != 2:
        raise ModelError(
            f"config.json has cross_attention_dim {widths!r}, expected for each level the widths of two texts, as "
            "[null, 768, 1024]"
        )
    generated, text = dict.fromkeys(pair)
    sample, timestep = sample_and_timestep(config)
    return CallParts(
        inputs=(
            sample,
            timestep,
            tensor("encoder_hidden_states", GENERATED_TOKENS, generated),
            tensor("encoder_hidden_states_1", TOKENS, text),
            tensor("encoder_attention_mask_1", TOKENS, dtype="int64", limits=(0, 1)),
        ),
        sizes=with_default(given, **AUDIO_LATENT, tokens=AUDIO_TOKENS),
        output=(BATCH, channels_out(config), HEIGHT, WIDTH),
    )


def _flat(values: object) -> list[Any]:
    return [one for value in values for one in _flat(value)] if isinstance(values, (list, tuple)) else [values]


def unet1d_parts(config: Mapping[str, Any], given: Mapping[str, int]) -> CallParts:
    """`sample` [B, C, length] and `timestep`."""
    return CallParts(
        inputs=(tensor("sample", whole(config, "in_channels"), LENGTH), tensor("timestep")),
        sizes={LENGTH: given.get(LENGTH, whole(config, "sample_size"))},
        output=(BATCH, channels_out(config), LENGTH),
    )
