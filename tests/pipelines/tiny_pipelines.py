"""Tiny pipelines of diffusers with random weights, whole: tokenizer, text encoder, VAE, scheduler, denoiser."""

from __future__ import annotations

import string
from typing import Any

from tests.tiny import LATENT_SCHEDULER, tiny_conditional_denoiser

LETTERS = string.ascii_lowercase + string.digits + ".,"


def tiny_tokenizer(tokens: int = 77) -> Any:
    """CLIP's tokenizer with one token a letter."""
    from transformers import CLIPTokenizer

    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=tokens)


def tiny_text_encoder(width: int = 12) -> Any:
    """CLIP's text encoder of one layer."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=2 * len(LETTERS) + 2,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=2 * len(LETTERS),
        eos_token_id=2 * len(LETTERS) + 1,
        pad_token_id=2 * len(LETTERS) + 1,
    )
    return CLIPTextModel(config).eval()


def tiny_projecting_encoder(width: int = 12, *, projected: int = 8, layers: int = 1) -> Any:
    """CLIP's text encoder that gives a projected vector too."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    sizes = {"num_hidden_layers": layers, "projection_dim": projected}
    return CLIPTextModelWithProjection(CLIPTextConfig(**tiny_text_encoder(width).config.to_dict() | sizes)).eval()


def tiny_t5_encoder(width: int) -> Any:
    """T5's text encoder of one layer; it may be given the letters of CLIP's tokenizer."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=80, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).eval()


def tiny_vae(**changes: Any) -> Any:
    """An autoencoder of 4 channels whose latents are half the picture's size."""
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        **changes,
    ).eval()


def tiny_text_pipeline(kind: str = "StableDiffusionPipeline", *, scheduler: str = "PNDMScheduler", **more: Any) -> Any:
    """A Stable Diffusion pipeline of 16 x 16 pixels; `more` are further components."""
    import diffusers
    import torch

    unet = more.pop("unet", None) or tiny_conditional_denoiser().module
    torch.manual_seed(0)
    config = {k: v for k, v in LATENT_SCHEDULER.items() if k not in ("_class_name", "set_alpha_to_one", "clip_sample")}
    pipeline = getattr(diffusers, kind)(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(),
        unet=unet,
        scheduler=getattr(diffusers, scheduler).from_config({**config, "skip_prk_steps": True}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **more,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
