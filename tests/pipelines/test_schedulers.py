"""Every scheduler and the guidance of a text pipeline run around an integer denoiser: none is written a second time."""

from __future__ import annotations

import importlib.util

import diffusers
import numpy as np
import pytest
import torch

from dq_deploy import IntegerDenoiser
from dq_deploy.models.pipeline import PipelineCall, build_scheduler
from dq_deploy.models.pipeline.open import pipeline_of_denoiser
from dq_deploy.pipelines.draw import draw_images
from tests.pipelines.float_runner import FloatRunner
from tests.tiny import LATENT_SCHEDULER, ONE_LEVEL, random_record, tiny_conditional_denoiser, tiny_denoiser

if importlib.util.find_spec("transformers") is None:
    pytest.skip("needs transformers, which text pipelines of diffusers import", allow_module_level=True)

SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "HeunDiscreteScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
)


UNLIKE_BETAS = ("FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "CMStochasticIterativeScheduler")
"""Other formulations, whose timesteps are fractional or negative."""


@pytest.fixture(scope="module")
def denoiser():
    return tiny_conditional_denoiser()


@pytest.fixture(scope="module")
def integers(denoiser, tmp_path_factory):
    from dq_deploy import save_record

    path = tmp_path_factory.mktemp("record") / "model.pt"
    save_record(random_record(denoiser, weight_bits=8), path)
    return IntegerDenoiser(path, threads=1)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8)


def latents_of(unet, vae, scheduler, steps=3):
    config = {key: value for key, value in LATENT_SCHEDULER.items() if key not in ("_class_name", "set_alpha_to_one")}
    config["skip_prk_steps"] = True  # as the folders of Stable Diffusion have it
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=getattr(diffusers, scheduler).from_config(config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    return pipeline(
        prompt_embeds=torch.randn(1, 77, 12, generator=generator),
        negative_prompt_embeds=torch.randn(1, 77, 12, generator=generator),
        guidance_scale=5.0,
        num_inference_steps=steps,
        height=8,
        width=8,
        generator=generator,
        output_type="latent",
    ).images


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_float_engine_gives_the_latents_of_diffusers_bit_for_bit(scheduler, denoiser, vae):
    own = latents_of(denoiser.module, vae, scheduler)
    engine = latents_of(IntegerDenoiser(FloatRunner(denoiser)), vae, scheduler)
    assert torch.equal(own, engine)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_integers_run_under_every_scheduler_with_guidance(scheduler, integers, vae):
    before = integers.calls
    latents = latents_of(integers, vae, scheduler)
    assert latents.shape == (1, 4, 8, 8)
    assert torch.isfinite(latents).all()
    assert integers.calls - before >= 3


@pytest.mark.parametrize("scheduler", [*UNLIKE_BETAS, "dpm++sde"])
def test_a_denoiser_alone_is_sampled_alike_with_a_float_engine_in_its_place(scheduler):
    bare = tiny_denoiser(**ONE_LEVEL)
    other = scheduler in UNLIKE_BETAS
    config, name = ({"_class_name": scheduler}, None) if other else (bare.scheduler_config, scheduler)
    drawn = []
    for module in (bare.module, IntegerDenoiser(FloatRunner(bare))):
        pipeline = pipeline_of_denoiser(module, build_scheduler(config, name))
        drawn.append(draw_images(pipeline, PipelineCall(steps=4, count=2), batch=2))
    assert np.array_equal(drawn[0].images, drawn[1].images)
    assert len(drawn[0].timesteps) == 4
