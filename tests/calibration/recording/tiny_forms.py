"""Tiny pipelines of every form a call has: text, added conditions, control residuals, classes, masks, image ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from dq_deploy.models.pipeline import PipelineCall
from tests.pipelines.tiny_pipelines import (
    LETTERS,
    tiny_projecting_encoder,
    tiny_t5_encoder,
    tiny_text_encoder,
    tiny_text_pipeline,
    tiny_tokenizer,
    tiny_vae,
)
from tests.tiny import tiny_conditional_denoiser, tiny_denoiser

TEXT: dict[str, Any] = {"prompts": ("a", "b c"), "guidance": 4.0, "steps": 2}
SMALL = {**TEXT, "height": 16, "width": 16}


def t5_tokenizer() -> Any:
    """T5's tokenizer with one token a letter."""
    from transformers import T5Tokenizer

    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    return T5Tokenizer(vocab=words, extra_ids=0, model_max_length=512)


def text(scheduler: str = "PNDMScheduler", **asked: Any) -> tuple[Any, PipelineCall]:
    """Stable Diffusion."""
    return tiny_text_pipeline(scheduler=scheduler), PipelineCall(**{**TEXT, **asked})


def sdxl() -> tuple[Any, PipelineCall]:
    """Two encoders, pooled embeddings and sizes."""
    return diffusers.StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        text_encoder_2=tiny_projecting_encoder(),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        unet=tiny_conditional_denoiser(sdxl=True, cross_attention_dim=24).module,
        scheduler=diffusers.EulerDiscreteScheduler(),
        add_watermarker=False,
    ), PipelineCall(**SMALL)


def img2img(picture: Path) -> tuple[Any, PipelineCall]:
    """Half the way from a picture."""
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(
        **tiny_text_pipeline().components, requires_safety_checker=False
    )
    return pipeline, PipelineCall(**{**TEXT, "steps": 4, "strength": 0.5, "image": picture})


def controlnet(picture: Path) -> tuple[Any, PipelineCall]:
    """Residuals of a ControlNet."""
    base = tiny_text_pipeline()
    config = diffusers.ControlNetModel.from_unet(base.unet).config
    plain = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    network = diffusers.ControlNetModel(**{**plain, "conditioning_embedding_out_channels": (4, 8)})
    pipeline = diffusers.StableDiffusionControlNetPipeline(
        **base.components, controlnet=network, requires_safety_checker=False
    )
    return pipeline, PipelineCall(**TEXT, control_image=picture)


def consistency() -> tuple[Any, PipelineCall]:
    """LCM: guidance is an input of the denoiser."""
    unet = tiny_conditional_denoiser(time_cond_proj_dim=8).module
    pipeline = tiny_text_pipeline("LatentConsistencyModelPipeline", scheduler="LCMScheduler", unet=unet)
    return pipeline, PipelineCall(**TEXT)


def one_step() -> tuple[Any, PipelineCall]:
    """A consistency model of pixels: one step, classes, no latents to give, timesteps that are not whole numbers."""
    pipeline = diffusers.ConsistencyModelPipeline(
        unet=tiny_denoiser(classes=3).module, scheduler=diffusers.CMStochasticIterativeScheduler()
    )
    return pipeline, PipelineCall(labels=(1, 2), steps=1)


def dit() -> tuple[Any, PipelineCall]:
    """A transformer with classes, half of whose output is variance."""
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    pipeline = diffusers.DiTPipeline(transformer=transformer, vae=tiny_vae(), scheduler=diffusers.DDIMScheduler())
    return pipeline, PipelineCall(labels=(1, 2), guidance=4.0, steps=2)


def pixart() -> tuple[Any, PipelineCall]:
    """Text with a mask, and an argument that is given as nothing."""
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        cross_attention_dim=16,
        caption_channels=16,
        use_additional_conditions=False,
    )
    pipeline = diffusers.PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=tiny_t5_encoder(16),
        vae=tiny_vae(),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )
    extra = {"max_sequence_length": 10, "use_resolution_binning": False}
    return pipeline, PipelineCall(**SMALL, extra=extra)


def sd3() -> tuple[Any, PipelineCall]:
    """Three encoders whose texts are joined."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=16,
    )
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=tiny_vae(),
        text_encoder=tiny_projecting_encoder(),
        tokenizer=tiny_tokenizer(),
        text_encoder_2=tiny_projecting_encoder(),
        tokenizer_2=tiny_tokenizer(),
        text_encoder_3=tiny_t5_encoder(24),
        tokenizer_3=t5_tokenizer(),
    )
    return pipeline, PipelineCall(**SMALL, extra={"max_sequence_length": 10})


def flux() -> tuple[Any, PipelineCall]:
    """Packed samples, ids without an axis of samples, guidance as a number, timesteps from 0 to 1."""
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=12,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    pipeline = diffusers.FluxPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(),
        text_encoder_2=tiny_t5_encoder(24),
        tokenizer_2=t5_tokenizer(),
    )
    return pipeline, PipelineCall(**{**SMALL, "height": 32, "width": 32, "extra": {"max_sequence_length": 12}})


def denoiser_of(pipeline: Any) -> torch.nn.Module:
    """Its UNet or transformer, as it is loaded from a folder."""
    pipeline.set_progress_bar_config(disable=True)
    module: torch.nn.Module = getattr(pipeline, "unet", None) or pipeline.transformer
    return module.eval().requires_grad_(False)
