"""Tiny pipelines on disk with records of their denoisers, and a call of each: embeddings, noise, settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dq_deploy import save_record
from dq_deploy.calibration.recording import call_of_pipeline
from dq_deploy.models import Denoiser
from dq_deploy.models.pipeline import PipelineCall
from tests.pipelines.tiny_pipelines import (
    tiny_projecting_encoder,
    tiny_t5_encoder,
    tiny_text_encoder,
    tiny_text_pipeline,
    tiny_tokenizer,
    tiny_vae,
)
from tests.pipelines.tiny_transformers import flux, sd3
from tests.tiny import LATENT_SCHEDULER, random_record, tiny_conditional_denoiser

ONE_LEVEL: dict[str, Any] = {
    "block_out_channels": [8],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
}
"""Changes of a tiny text-conditioned UNet for half of its layers."""


SHORT_TEXTS = {"guidance_scale": 3.0, "max_sequence_length": 16}


@dataclass(frozen=True, kw_only=True)
class TinyFolder:
    """A pipeline on disk.

    Attributes:
        pipeline: its folder.
        record: of its denoiser.
        tensors: embeddings and noise of a call, by argument.
        settings: the other arguments.
        prompt: a text that it draws too; None without text encoders.
    """

    pipeline: Path
    record: Path
    tensors: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]
    prompt: str | None


def tiny_folder(name: str, place: Path) -> TinyFolder:
    """Write `sd`, `sdxl`, `sd3` or `flux`."""
    torch.manual_seed(0)
    pipeline, denoiser, shapes, settings, prompt = _MAKERS[name]()
    pipeline.save_pretrained(place / "pipeline")
    save_record(random_record(denoiser, weight_bits=8), place / "model.pt")
    rng = np.random.default_rng(0)
    return TinyFolder(
        pipeline=place / "pipeline",
        record=place / "model.pt",
        tensors={key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()},
        settings={"num_inference_steps": 3, "height": 16, "width": 16, **settings},
        prompt=prompt,
    )


def _sd() -> tuple[Any, ...]:
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}  # the text is read in the middle
    denoiser = tiny_conditional_denoiser(**{**ONE_LEVEL, **blocks})
    pipeline = tiny_text_pipeline(unet=denoiser.module)
    pipeline.register_modules(vae=tiny_vae(mid_block_add_attention=False))  # half of the time to trace it
    shapes = {"prompt_embeds": (2, 77, 12), "negative_prompt_embeds": (2, 77, 12), "latents": (2, 4, 8, 8)}
    return pipeline, denoiser, shapes, {"guidance_scale": 3.0}, "a red cat"


def _sdxl() -> tuple[Any, ...]:
    import diffusers

    denoiser = tiny_conditional_denoiser(
        sdxl=True, **{**ONE_LEVEL, "attention_head_dim": [2], "transformer_layers_per_block": [1]}
    )
    config = {k: v for k, v in LATENT_SCHEDULER.items() if k != "_class_name"}
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(4),
        text_encoder_2=tiny_projecting_encoder(8, projected=8, layers=2),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        unet=denoiser.module,
        scheduler=diffusers.DDIMScheduler(**config),
        add_watermarker=False,
    )
    text = {f"{negative}prompt_embeds": (2, 77, 12) for negative in ("", "negative_")}
    pooled = {f"{negative}pooled_prompt_embeds": (2, 8) for negative in ("", "negative_")}
    return pipeline, denoiser, {**text, **pooled, "latents": (2, 4, 8, 8)}, {"guidance_scale": 3.0}, "a red cat"


def _transformer(made: tuple[Any, dict[str, Any]]) -> tuple[Any, Denoiser]:
    """A pipeline of an image transformer and its float denoiser, as it is called."""
    pipeline, options = made
    pipeline.set_progress_bar_config(disable=True)
    module = pipeline.transformer.eval()
    config = {key: value for key, value in module.config.items() if key != "_use_default_values"}
    return pipeline, Denoiser(
        family=type(module).__name__,
        module=module,
        config={**config, "_class_name": type(module).__name__},
        call=call_of_pipeline(pipeline, module, PipelineCall(steps=2, seed=1, **options), {}).call,
        scheduler_config=None,
        source="tiny",
        source_sha256="0" * 64,
    )


def _sd3() -> tuple[Any, ...]:
    pipeline, denoiser = _transformer(sd3())
    pipeline.register_modules(
        text_encoder=tiny_projecting_encoder(4, projected=4, layers=2),
        text_encoder_2=tiny_projecting_encoder(6, projected=4, layers=2),
        text_encoder_3=tiny_t5_encoder(12),
        **{name: tiny_tokenizer() for name in ("tokenizer", "tokenizer_2", "tokenizer_3")},
    )
    text = {f"{negative}prompt_embeds": (2, 5, 12) for negative in ("", "negative_")}
    pooled = {f"{negative}pooled_prompt_embeds": (2, 8) for negative in ("", "negative_")}
    return pipeline, denoiser, {**text, **pooled, "latents": (2, 4, 8, 8)}, SHORT_TEXTS, "a red cat"


def _flux() -> tuple[Any, ...]:
    pipeline, denoiser = _transformer(flux())
    encoders = {"text_encoder": tiny_text_encoder(8), "text_encoder_2": tiny_t5_encoder(12)}
    pipeline.register_modules(**encoders, tokenizer=tiny_tokenizer(), tokenizer_2=tiny_tokenizer())
    shapes = {"prompt_embeds": (2, 5, 12), "pooled_prompt_embeds": (2, 8), "latents": (2, 16, 16)}
    return pipeline, denoiser, shapes, SHORT_TEXTS, "a red cat"


_MAKERS = {"sd": _sd, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}
