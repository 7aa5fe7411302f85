"""Which diffusers classes denoise is read off their forward, and old names become today's as in diffusers."""

from __future__ import annotations

import diffusers
import pytest
from diffusers.models import model_loading_utils

from dq_deploy.models.load.component_class import TODAY, denoises, diffusers_class, is_controlnet, todays_config

DENOISERS = [
    "UNet2DModel",
    "UNet2DConditionModel",
    "DiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "PriorTransformer",
    "ZImageTransformer2DModel",
    "StableCascadeUNet",
    "HiDreamImageTransformer2DModel",
    "UNetControlNetXSModel",
    "WanTransformer3DModel",
    "AudioLDM2UNet2DConditionModel",
    "ControlNetModel",
]
OTHERS = [
    "AutoencoderKL",
    "AutoencoderKLLTXVideo",
    "VQModel",
    "ConsistencyDecoderVAE",
    "T2IAdapter",
    "MotionAdapter",
    "DDIMScheduler",
    "StableDiffusionPipeline",
    "AudioLDM2ProjectionModel",
]


@pytest.mark.parametrize("name", [*DENOISERS, *OTHERS])
def test_a_model_that_is_told_the_time_denoises(name):
    assert denoises(diffusers_class(name)) == (name in DENOISERS)


def test_a_class_is_looked_for_in_its_pipeline_and_in_diffusers_alone():
    assert diffusers_class("WuerstchenPrior", "wuerstchen") is None or denoises(
        diffusers_class("WuerstchenPrior", "wuerstchen")
    )
    assert diffusers_class("UNet2DModel", "json") is diffusers.UNet2DModel
    assert diffusers_class("JSONDecoder", "json") is None
    assert diffusers_class("__version__") is None
    assert diffusers_class("a b") is None


def test_control_networks_are_told_from_unets_with_one_inside():
    assert is_controlnet(diffusers.ControlNetModel)
    assert is_controlnet(diffusers.FluxControlNetModel)
    assert not is_controlnet(diffusers.UNetControlNetXSModel)


def test_old_class_names_are_those_that_diffusers_replaces():
    theirs = {
        (old, norm): new
        for old, table in model_loading_utils._CLASS_REMAPPING_DICT.items()
        for norm, new in table.items()
    }
    assert theirs == TODAY


def test_an_old_transformer_has_todays_class_and_configuration():
    made = diffusers.Transformer2DModel(
        norm_type="ada_norm_zero",
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        activation_fn="gelu-approximate",
        num_layers=1,
        norm_elementwise_affine=False,
    )
    config = todays_config({"_class_name": "Transformer2DModel", **made.config}, diffusers.Transformer2DModel)
    assert config["_class_name"] == "DiTTransformer2DModel"
    built = diffusers.DiTTransformer2DModel(**{key: value for key, value in config.items() if key[0] != "_"})
    assert built.state_dict().keys() == made.state_dict().keys()
