"""What Optimum cannot open is refused by name before any work: pipelines, components, inputs of the denoiser."""

from __future__ import annotations

from pathlib import Path

import pytest

from dq_deploy.errors import ModelError, OptionError
from dq_deploy.models.pipeline.folder import PipelineFolder
from dq_deploy.pipelines.layouts.optimum_reads import check_inputs, check_text_encoder, plan_folder

PARTS = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "scheduler": ("diffusers", "DDIMScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
}


def folder(class_name="StableDiffusionPipeline", **changes):
    parts = {name: entry for name, entry in {**PARTS, **changes}.items() if entry is not None}
    return PipelineFolder(path=Path("pipe"), class_name=class_name, components=parts)


def test_a_stable_diffusion_is_planned_whole():
    plan = plan_folder(folder(), "unet", "onnxruntime")
    assert plan.text_encoders == {"text_encoder": "CLIPTextModel"}
    assert plan.copied == ("tokenizer",)
    assert plan.left_out == ()
    assert not plan.hidden_states
    assert plan_folder(folder("StableDiffusionXLPipeline"), "unet", "openvino").hidden_states


def test_a_safety_checker_and_an_image_encoder_are_left_out_with_a_line_each():
    parts = {
        "safety_checker": ("stable_diffusion", "StableDiffusionSafetyChecker"),
        "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
        "feature_extractor": ("transformers", "CLIPImageProcessor"),
    }
    plan = plan_folder(folder(**parts), "unet", "onnxruntime")
    assert [line.partition(" is left out: ")[0] for line in plan.left_out] == [
        "safety_checker StableDiffusionSafetyChecker",
        "image_encoder CLIPVisionModelWithProjection",
    ]
    assert plan.copied == ("tokenizer", "feature_extractor")


@pytest.mark.parametrize(
    ("given", "component", "target", "error", "message"),
    [
        (
            folder("PixArtSigmaPipeline"),
            "unet",
            "onnxruntime",
            OptionError,
            "PixArtSigmaPipeline, which Optimum does not",
        ),
        (folder("FluxInpaintPipeline"), "unet", "onnxruntime", OptionError, "does not run on onnxruntime"),
        (folder(), "prior", "onnxruntime", OptionError, "the denoiser is the prior, expected unet or transformer"),
        (
            folder(vae=("diffusers", "AutoencoderTiny")),
            "unet",
            "openvino",
            ModelError,
            "the vae AutoencoderTiny, expected",
        ),
        (folder(vae=None), "unet", "openvino", ModelError, "has no vae"),
        (
            folder(text_encoder=("transformers", "Gemma2Model")),
            "unet",
            "onnxruntime",
            ModelError,
            "the text_encoder Gemma2Model, expected CLIPTextModel or",
        ),
        (
            folder(controlnet=("diffusers", "ControlNetModel")),
            "unet",
            "onnxruntime",
            ModelError,
            "has controlnet ControlNetModel, which Optimum does not load",
        ),
    ],
)
def test_what_optimum_does_not_open_is_refused_by_name(given, component, target, error, message):
    with pytest.raises(error, match=message):
        plan_folder(given, component, target)


def test_an_input_that_optimum_does_not_give_is_refused_by_name():
    check_inputs(["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"], "unet")
    with pytest.raises(OptionError, match=r"takes mid_block_additional_residual, which Optimum does not give a unet"):
        check_inputs(["sample", "timestep", "mid_block_additional_residual"], "unet")
    with pytest.raises(OptionError, match=r"takes sample, which Optimum does not give a transformer"):
        check_inputs(["sample"], "transformer")


def test_a_text_encoder_that_wants_the_mask_is_refused():
    check_text_encoder({"use_attention_mask": False}, "text_encoder")
    check_text_encoder({}, "text_encoder")
    with pytest.raises(OptionError, match="text_encoder has use_attention_mask true"):
        check_text_encoder({"use_attention_mask": True}, "text_encoder")
