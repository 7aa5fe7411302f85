"""What a denoiser's configuration means where it is silent: the defaults of the diffusers class it names.

Only keys that are read outside of diffusers' own constructor are here; the rest diffusers fills in itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

from dq_deploy.errors import ModelError

CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "UNet2DModel": {
        "block_out_channels": (224, 448, 672, 896),
        "class_embed_type": None,
        "in_channels": 3,
        "num_class_embeds": None,
        "out_channels": 3,
        "sample_size": None,
    },
    "UNet2DConditionModel": {
        "block_out_channels": (320, 640, 1280, 1280),
        "class_embed_type": None,
        "cross_attention_dim": 1280,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "in_channels": 4,
        "num_class_embeds": None,
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
        "out_channels": 4,
        "sample_size": None,
        "time_cond_proj_dim": None,
        "time_embedding_dim": None,
        "time_embedding_type": "positional",
    },
    "ControlNetModel": {
        "block_out_channels": (320, 640, 1280, 1280),
        "class_embed_type": None,
        "conditioning_channels": 3,
        "conditioning_embedding_out_channels": (16, 32, 96, 256),
        "cross_attention_dim": 1280,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "in_channels": 4,
        "num_class_embeds": None,
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
    },
    "DiTTransformer2DModel": {"in_channels": 4, "num_embeds_ada_norm": 1000, "out_channels": None, "sample_size": 32},
    "PixArtTransformer2DModel": {
        "caption_channels": None,
        "cross_attention_dim": 1152,
        "in_channels": 4,
        "out_channels": 8,
        "sample_size": 128,
        "use_additional_conditions": None,
    },
    "SD3Transformer2DModel": {
        "in_channels": 16,
        "joint_attention_dim": 4096,
        "out_channels": 16,
        "pooled_projection_dim": 2048,
        "sample_size": 128,
    },
    "FluxTransformer2DModel": {
        "guidance_embeds": False,
        "in_channels": 64,
        "joint_attention_dim": 4096,
        "out_channels": None,
        "pooled_projection_dim": 768,
    },
    "HunyuanDiT2DModel": {
        "attention_head_dim": 88,
        "cross_attention_dim": 1024,
        "cross_attention_dim_t5": 2048,
        "in_channels": None,
        "learn_sigma": True,
        "patch_size": None,
        "sample_size": 32,
        "text_len": 77,
        "text_len_t5": 256,
        "use_style_cond_and_image_meta_size": True,
    },
    "QwenImageTransformer2DModel": {
        "guidance_embeds": False,
        "in_channels": 64,
        "joint_attention_dim": 3584,
        "out_channels": 16,
    },
    "CogVideoXTransformer3DModel": {
        "attention_head_dim": 64,
        "in_channels": 16,
        "max_text_seq_length": 226,
        "ofs_embed_dim": None,
        "out_channels": 16,
        "patch_size": 2,
        "patch_size_t": None,
        "sample_frames": 49,
        "sample_height": 60,
        "sample_width": 90,
        "temporal_compression_ratio": 4,
        "text_embed_dim": 4096,
        "use_rotary_positional_embeddings": False,
    },
    "WanTransformer3DModel": {
        "image_dim": None,
        "in_channels": 16,
        "out_channels": 16,
        "pos_embed_seq_len": None,
        "text_dim": 4096,
    },
    "LTXVideoTransformer3DModel": {"caption_channels": 4096, "in_channels": 128, "out_channels": 128},
    "UNetSpatioTemporalConditionModel": {
        "cross_attention_dim": 1024,
        "in_channels": 8,
        "num_frames": 25,
        "out_channels": 4,
    },
    "UNetMotionModel": {
        "addition_embed_type": None,
        "cross_attention_dim": 1280,
        "encoder_hid_dim_type": None,
        "in_channels": 4,
        "out_channels": 4,
        "sample_size": None,
    },
    "StableAudioDiTModel": {
        "attention_head_dim": 64,
        "cross_attention_input_dim": 768,
        "global_states_input_dim": 1536,
        "in_channels": 64,
        "out_channels": 64,
        "sample_size": 1024,
    },
    "AudioLDM2UNet2DConditionModel": {"cross_attention_dim": 1280, "in_channels": 4, "out_channels": 4},
    "UNet1DModel": {"in_channels": 2, "out_channels": 2, "sample_size": 65536},
}
"""By class of diffusers; a test compares them with its signatures."""


def value_of(config: Mapping[str, Any], key: str) -> Any:
    """A key of the configuration, or the default of the class that it names; None where that is unknown."""
    if key in config:
        return config[key]
    return CLASS_DEFAULTS.get(str(config.get("_class_name")), {}).get(key)


def channels_of(config: Mapping[str, Any], key: str) -> int:
    """`in_channels` or `out_channels`.

    Raises:
        ModelError: no whole number from 1.
    """
    value = value_of(config, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"config.json has {key} {short(value)}, expected a whole number from 1")
    return value


def sample_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of a sample.

    Raises:
        ModelError: the configuration has none.
    """
    size = value_of(config, "sample_size")
    pair = (size, size) if isinstance(size, int) else size
    whole = isinstance(pair, (list, tuple)) and len(pair) == 2
    if not whole or not all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in pair):
        raise ModelError(
            f"config.json has sample_size {short(size)}, expected a whole number or [height, width]; add it"
        )
    return int(pair[0]), int(pair[1])


def sample_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """[C, H, W] of the denoiser's input.

    Raises:
        ModelError: the configuration does not say it.
    """
    return (channels_of(config, "in_channels"), *sample_size(config))
