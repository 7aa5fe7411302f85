"""The residuals of a ControlNet reach the engine by their dotted names, at every size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

import diffusers

from dq_deploy import IntegerDenoiser
from dq_deploy.calibration.recording import call_of_pipeline
from dq_deploy.errors import OptionError
from dq_deploy.models import Denoiser
from dq_deploy.models.pipeline import PipelineCall
from dq_deploy.pipelines.draw import draw_images
from tests.pipelines.float_runner import FloatRunner
from tests.pipelines.tiny_pipelines import tiny_text_pipeline
from tests.tiny import tiny_conditional_denoiser


@pytest.fixture
def controlled(tmp_path):
    """A pipeline with a ControlNet, its UNet as a `Denoiser`, and a call of it."""
    denoiser = tiny_conditional_denoiser()
    torch.manual_seed(0)
    control = diffusers.ControlNetModel.from_unet(denoiser.module).eval()
    for parameter in control.parameters():  # its last layers begin at zero
        parameter.data += 0.05 * torch.randn(parameter.shape)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
    ).eval()
    parts = {**tiny_text_pipeline(unet=denoiser.module).components, "vae": vae, "controlnet": control}
    pipeline = diffusers.StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "edges.png")
    asked = PipelineCall(prompts=("a", "b"), control_image=tmp_path / "edges.png", steps=2, count=2)
    return pipeline, denoiser, asked


def test_a_float_engine_follows_a_control_picture_as_diffusers_does(controlled):
    pipeline, denoiser, asked = controlled
    own = draw_images(pipeline, asked, batch=2)
    call = call_of_pipeline(pipeline, denoiser.module, asked, {}).call
    assert "down_block_additional_residuals.3" in [item.name for item in call.inputs]
    pipeline.unet = IntegerDenoiser(FloatRunner(dataclasses.replace(denoiser, call=call)))
    assert np.array_equal(draw_images(pipeline, asked, batch=2).images, own.images)
    with pytest.raises(OptionError, match="what its ControlNet follows; give it as `control_image`"):
        draw_images(pipeline, PipelineCall(prompts=("a",), image=asked.control_image))
    with pytest.raises(OptionError, match="works on a picture; give `control_image`"):
        draw_images(pipeline, PipelineCall(prompts=("a",)))


def test_a_float_engine_in_the_control_network_s_place_gives_diffusers_pictures(controlled):
    pipeline, _, asked = controlled
    control = pipeline.controlnet
    config = {**control.config, "_class_name": "ControlNetModel"}
    own = draw_images(pipeline, asked, batch=2)
    call = call_of_pipeline(pipeline, control, asked, {}).call
    assert list(call.outputs) == [*(f"down_block_res_samples.{i}" for i in range(4)), "mid_block_res_sample"]
    denoiser = Denoiser(
        family="ControlNetModel",
        module=control,
        config=config,
        call=call,
        scheduler_config=None,
        source="",
        source_sha256="",
    )
    pipeline.controlnet = IntegerDenoiser(FloatRunner(denoiser))
    assert isinstance(pipeline.controlnet, diffusers.ControlNetModel)  # as the pipeline asks
    assert isinstance(pipeline.controlnet, IntegerDenoiser)
    assert np.array_equal(draw_images(pipeline, asked, batch=2).images, own.images)
    assert pipeline.controlnet.calls > 1
    assert repr(pipeline.controlnet) == "IntegerDenoiser()"
