"""A denoiser alone is sampled by whatever scheduler of diffusers it has, each image from its own noise."""

from __future__ import annotations

import pytest
import torch

from dq_deploy.errors import ModelError, OptionError
from dq_deploy.models.pipeline import PipelineCall, build_scheduler, open_pipeline
from dq_deploy.models.pipeline.denoiser_pipeline import DenoiserPipeline
from tests.tiny import ONE_LEVEL, tiny_denoiser

BETAS = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler")
BETAS += ("EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler", "TCDScheduler")
BETAS += ("UniPCMultistepScheduler", "LCMScheduler", "DEISMultistepScheduler", "KDPM2DiscreteScheduler")
OTHERS = ("FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "CMStochasticIterativeScheduler")


@pytest.fixture(scope="module")
def denoiser():
    return tiny_denoiser(classes=3, **ONE_LEVEL)


def drawn(denoiser, scheduler, indices, **more):
    config = denoiser.scheduler_config if scheduler in BETAS else {"_class_name": scheduler}
    pipeline = DenoiserPipeline(denoiser.module, build_scheduler(config, scheduler))
    pipeline.set_progress_bar_config(disable=True)
    call = PipelineCall(steps=4, count=3, labels=(0, 1, 2), seed=4, **more)
    return pipeline(**call.arguments(pipeline, indices, output_type="latent")).images


@pytest.mark.parametrize("scheduler", BETAS + OTHERS)
def test_an_image_depends_on_its_own_noise_alone(scheduler, denoiser):
    together = drawn(denoiser, scheduler, [0, 1, 2])
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together[2:], drawn(denoiser, scheduler, [2]), rtol=1e-3, atol=1e-4)


def test_a_schedulers_own_pipeline_of_diffusers_gives_the_same(denoiser):
    from diffusers import DDIMPipeline

    bare = tiny_denoiser(**ONE_LEVEL)
    ours = DenoiserPipeline(bare.module, build_scheduler(bare.scheduler_config, "ddim"))
    theirs = DDIMPipeline(bare.module, build_scheduler(bare.scheduler_config, "ddim"))
    pictures = []
    for pipeline in (ours, theirs):
        pipeline.set_progress_bar_config(disable=True)
        call = PipelineCall(steps=4, count=2)
        pictures.append(pipeline(**call.arguments(pipeline, [0, 1], output_type="np")).images)
    assert (pictures[0] == pictures[1]).all()


def test_what_a_denoiser_alone_cannot_do_is_refused(denoiser):
    pipeline = DenoiserPipeline(denoiser.module, build_scheduler(denoiser.scheduler_config, "euler"))
    with pytest.raises(OptionError, match=r"eta is 0\.5, expected 0: EulerDiscreteScheduler has no eta"):
        pipeline(eta=0.5)
    with pytest.raises(OptionError, match="class-conditional, expected labels from 0 to 2"):
        pipeline()
    with pytest.raises(OptionError, match="class_labels has 2 rows, expected 1"):
        pipeline(class_labels=[0, 1])
    with pytest.raises(OptionError, match="steps is 2000, expected 1 to 1000"):
        pipeline(class_labels=[0], num_inference_steps=2000)
    wider = tiny_denoiser(**ONE_LEVEL, in_channels=3)
    with pytest.raises(ModelError, match="takes 3 channels and gives 1"):
        DenoiserPipeline(wider.module, pipeline.scheduler)()


def test_a_sample_that_is_no_picture_is_refused(denoiser):
    scheduler, plain = build_scheduler(denoiser.scheduler_config, "euler"), {"in_channels": 4, "out_channels": 4}
    for kind, axes in (("UNet1DModel", 3), ("WanTransformer3DModel", 5)):
        video = torch.nn.Identity()
        video.config = {"_class_name": kind, **plain}
        pipeline = DenoiserPipeline(denoiser.module, scheduler)
        pipeline.denoiser = video
        with pytest.raises(ModelError, match=f"the sample of a {kind} has {axes} axes, expected the 4 of pictures"):
            pipeline(height=8, width=8)


@pytest.mark.parametrize(("labels", "message"), [(None, "class-conditional, expected labels"), ([9], "label 9 is out")])
def test_classes_are_asked_for_wherever_the_configuration_says_them(labels, message):
    import diffusers

    module = diffusers.DiTTransformer2DModel(
        num_attention_heads=1,
        attention_head_dim=8,
        in_channels=1,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=4,
        norm_num_groups=1,
    )
    pipeline = DenoiserPipeline(module, build_scheduler({"_class_name": "DDIMScheduler"}))
    with pytest.raises(OptionError, match=f"{message}.*0 to 4"):
        pipeline(class_labels=labels)
    assert pipeline(class_labels=[4], num_inference_steps=1, output_type="np").images.shape == (1, 8, 8, 1)


def test_the_digits_open_with_the_scheduler_of_their_folder():
    pipeline = open_pipeline("examples/mnist-ddpm-32")
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    assert pipeline(class_labels=[3], num_inference_steps=2, output_type="np").images.shape == (1, 32, 32, 1)
