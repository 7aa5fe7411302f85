"""Write a small Stable Diffusion pipeline with random weights: a folder to try commands with, not a model.

    python examples/random_pipeline.py my-pipeline

It has everything that a real folder has (tokenizer, text encoder, UNet, scheduler, VAE) in 3 MB, and needs no network.
Its pictures are noise. The extra `pipelines` must be installed.
"""

from __future__ import annotations

import argparse
import string
from pathlib import Path

import diffusers
import torch

try:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
except ImportError as error:
    raise SystemExit("error: transformers is missing; install it with pip install 'dq-deploy[pipelines]'") from error

LETTERS = string.ascii_lowercase + string.digits + ".,"
"""What a prompt may hold; each letter is a token."""
WIDTH = 32


def text_parts() -> tuple[CLIPTokenizer, CLIPTextModel]:
    """A tokenizer of single letters, and a text encoder of one layer."""
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    return tokenizer, CLIPTextModel(config).eval()


def random_pipeline() -> diffusers.StableDiffusionPipeline:
    """The pipeline, with seeded weights; its pictures have 64 x 64 pixels."""
    torch.manual_seed(0)
    tokenizer, text_encoder = text_parts()
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    return diffusers.StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"error: {folder}: {error.strerror}; choose another place") from error
    random_pipeline().save_pretrained(folder)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
