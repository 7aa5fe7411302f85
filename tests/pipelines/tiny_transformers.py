"""Tiny pipelines of image transformers with random weights, and embeddings in place of their text encoders."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests.pipelines.tiny_pipelines import tiny_vae

SIZES: dict[str, Any] = {"num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
PATCHES: dict[str, Any] = {**SIZES, "sample_size": 8, "patch_size": 2, "in_channels": 4}
PATCHES |= {"attention_bias": True, "activation_fn": "gelu-approximate", "norm_elementwise_affine": False}

WITHOUT_TEXT = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))


def flux() -> tuple[Any, dict[str, Any]]:
    """FLUX with its guidance as an input, ids without a batch and shifted timesteps from 0 to 1."""
    transformer = diffusers.FluxTransformer2DModel(
        **SIZES,
        patch_size=1,
        in_channels=16,
        num_single_layers=1,
        joint_attention_dim=12,
        pooled_projection_dim=8,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    pipeline = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=tiny_vae(shift_factor=0.0, scaling_factor=1.0),
        transformer=transformer,
        **WITHOUT_TEXT,
    )
    embeddings = {"prompt_embeds": torch.randn(1, 5, 12), "pooled_prompt_embeds": torch.randn(1, 8)}
    return pipeline, {"extra": embeddings, "height": 16, "width": 32, "guidance": 3.0}


def sd3() -> tuple[Any, dict[str, Any]]:
    """Stable Diffusion 3, guided."""
    transformer = diffusers.SD3Transformer2DModel(
        **{**SIZES, "num_layers": 2},
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        joint_attention_dim=12,
        caption_projection_dim=32,
        pooled_projection_dim=8,
        pos_embed_max_size=16,
    )
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=tiny_vae(shift_factor=0.0, scaling_factor=1.0),
        text_encoder_3=None,
        tokenizer_3=None,
        **WITHOUT_TEXT,
    )
    embeddings = {
        f"{negative}{pooled}prompt_embeds": torch.randn(1, 8) if pooled else torch.randn(1, 5, 12)
        for negative in ("", "negative_")
        for pooled in ("", "pooled_")
    }
    return pipeline, {"extra": embeddings, "height": 16, "width": 16, "guidance": 3.0}


def pixart() -> tuple[Any, dict[str, Any]]:
    """PixArt-sigma, guided, with masks of its texts and constants beside them."""
    transformer = diffusers.PixArtTransformer2DModel(
        **PATCHES,
        out_channels=8,
        caption_channels=12,
        cross_attention_dim=32,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
    )
    pipeline = diffusers.PixArtSigmaPipeline(
        transformer=transformer,
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
    )
    extra = {
        "prompt_embeds": torch.randn(1, 5, 12),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 0, 0]]),
        "negative_prompt": None,
        "negative_prompt_embeds": torch.randn(1, 5, 12),
        "negative_prompt_attention_mask": torch.ones(1, 5, dtype=torch.long),
        "use_resolution_binning": False,
    }
    return pipeline, {"extra": extra, "height": 16, "width": 16, "guidance": 3.0}


def dit() -> tuple[Any, dict[str, Any]]:
    """DiT, guided by the class without a name, with a learned variance."""
    transformer = diffusers.DiTTransformer2DModel(
        **PATCHES, out_channels=8, num_embeds_ada_norm=1000, norm_type="ada_norm_zero"
    )
    pipeline = diffusers.DiTPipeline(transformer=transformer, vae=tiny_vae(), scheduler=diffusers.DDIMScheduler())
    return pipeline, {"labels": (7,), "guidance": 2.0}


TRANSFORMERS = {"flux": flux, "sd3": sd3, "pixart": pixart, "dit": dit}
