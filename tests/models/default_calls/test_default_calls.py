"""A class's default call is what its pipelines give it, by the configuration alone."""

from __future__ import annotations

from typing import Any

import pytest

from dq_deploy.errors import ModelError
from dq_deploy.models.default_calls import call_for

UNET: dict[str, Any] = {"_class_name": "UNet2DConditionModel", "sample_size": 8, "cross_attention_dim": 12}


def shapes(config: dict[str, Any], **sizes: int) -> dict[str, tuple[int | str, ...]]:
    return {item.name: item.shape for item in call_for(config, sizes).inputs}


def test_a_unet_is_given_samples_of_any_size_and_labels():
    config = {"_class_name": "UNet2DModel", "sample_size": [8, 6], "num_class_embeds": 10}
    assert shapes(config) == {"sample": ("B", 3, "height", "width"), "timestep": ("B",), "class_labels": ("B",)}
    assert call_for(config).sizes == {"height": 8, "width": 6}
    assert [item.dtype for item in call_for(config).inputs] == ["float32", "float32", "int64"]


@pytest.mark.parametrize(
    ("changes", "shape", "dtype"),
    [
        ({"num_class_embeds": 7}, ("B",), "int64"),
        ({"class_embed_type": "timestep"}, ("B",), "float32"),
        ({"class_embed_type": "identity", "block_out_channels": [8, 16]}, ("B", 32), "float32"),
        ({"class_embed_type": "identity", "time_embedding_dim": 20}, ("B", 20), "float32"),
        ({"class_embed_type": "projection", "projection_class_embeddings_input_dim": 24}, ("B", 24), "float32"),
        ({"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 5}, ("B", 5), "float32"),
    ],
)
def test_labels_are_what_the_embedding_reads(changes, shape, dtype):
    found = next(item for item in call_for({**UNET, **changes}).inputs if item.name == "class_labels")
    assert (found.shape, found.dtype) == (shape, dtype)


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 4,
                "projection_class_embeddings_input_dim": 32,
            },
            {"added_cond_kwargs.text_embeds": ("B", 8), "added_cond_kwargs.time_ids": ("B", 6)},
        ),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 4,
                "projection_class_embeddings_input_dim": 32,
                "encoder_hid_dim_type": None,
                "time_cond_proj_dim": 6,
            },
            {
                "timestep_cond": ("B", 6),
                "added_cond_kwargs.text_embeds": ("B", 8),
                "added_cond_kwargs.time_ids": ("B", 6),
            },
        ),
        (
            {"addition_embed_type": "text_image", "encoder_hid_dim_type": "text_image_proj", "encoder_hid_dim": 20},
            {"added_cond_kwargs.text_embeds": ("B", 12), "added_cond_kwargs.image_embeds": ("B", 12)},
        ),
        ({"encoder_hid_dim": 20, "addition_embed_type": "text"}, {}),
    ],
)
def test_added_conditions_are_those_of_the_embeddings(changes, added):
    config = {**UNET, **changes}
    found = shapes(config)
    text = found.pop("encoder_hidden_states")
    assert text == ("B", "tokens", 20 if "encoder_hid_dim" in changes else 12)
    assert {name: shape for name, shape in found.items() if name not in ("sample", "timestep")} == added


def test_the_refiner_has_five_time_ids_because_its_pooled_text_is_as_wide_as_its_text():
    config = UNET | {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "cross_attention_dim": 1280}
    refiner = config | {"projection_class_embeddings_input_dim": 2560}
    assert shapes(refiner)["added_cond_kwargs.time_ids"] == ("B", 5)
    assert shapes(refiner)["added_cond_kwargs.text_embeds"] == ("B", 1280)
    base = config | {"projection_class_embeddings_input_dim": 2816, "cross_attention_dim": 2048}
    assert shapes(base)["added_cond_kwargs.time_ids"] == ("B", 6)


def test_text_that_the_pipelines_never_give_is_none():
    image = UNET | {"encoder_hid_dim": 16, "encoder_hid_dim_type": "image_proj", "addition_embed_type": "image"}
    call = call_for(image)
    assert call.constants == {"encoder_hidden_states": None}
    assert shapes(image)["added_cond_kwargs.image_embeds"] == ("B", 16)
    itself = UNET | {"cross_attention_dim": [8, 16], "block_out_channels": [8, 16]}
    assert call_for(itself).constants == {"encoder_hidden_states": None}


def test_a_hint_stands_beside_the_sample():
    config = UNET | {"encoder_hid_dim": 16, "encoder_hid_dim_type": "image_proj", "addition_embed_type": "image_hint"}
    found = shapes(config | {"in_channels": 8})
    assert found["sample"] == ("B", 4, "height", "width")
    assert found["added_cond_kwargs.hint"] == ("B", 3, "height_times_8", "width_times_8")
    assert call_for(config | {"in_channels": 8}).sizes["height_times_8"] == 64


def test_transformers_are_given_what_their_pipelines_give():
    dit = {"_class_name": "DiTTransformer2DModel", "sample_size": 8}
    assert shapes(dit)["hidden_states"] == ("B", 4, 8, 8)
    pixart = {"_class_name": "PixArtTransformer2DModel", "caption_channels": 20}
    assert shapes(pixart)["added_cond_kwargs.aspect_ratio"] == ("B", 1)
    assert "added_cond_kwargs.resolution" not in shapes(pixart | {"sample_size": 64})
    assert shapes({"_class_name": "SD3Transformer2DModel"})["pooled_projections"] == ("B", 2048)
    flux = {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True}
    assert shapes(flux)["img_ids"] == ("image_tokens", 3)
    assert shapes(flux)["guidance"] == ("B",)
    assert call_for(flux).sizes == {"image_tokens": 4096, "tokens": 512}
    assert call_for(flux, {"height": 8, "width": 6}).sizes["image_tokens"] == 12


def test_another_class_is_called_as_far_as_its_arguments_say_it():
    aura = {"_class_name": "AuraFlowTransformer2DModel", "sample_size": 64, "in_channels": 4}
    found = shapes(aura | {"joint_attention_dim": 2048})
    assert found == {
        "hidden_states": ("B", 4, "height", "width"),
        "encoder_hidden_states": ("B", "tokens", 2048),
        "timestep": ("B",),
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (UNET | {"sample_size": None}, "no sample_size; give `height` and `width`"),
        (UNET | {"cross_attention_dim": [8, 12]}, r"cross_attention_dim \[8, 12\], expected one whole number"),
        (UNET | {"class_embed_type": "x"}, "class_embed_type 'x'"),
        (UNET | {"addition_embed_type": "x"}, "addition_embed_type 'x'"),
        (UNET | {"encoder_hid_dim_type": "ip_image_proj"}, "an IP-Adapter; give a pipeline folder"),
        ({"_class_name": "UNet2DModel", "class_embed_type": "projection", "sample_size": 8}, "'projection', expected"),
        ({"_class_name": "CogView3PlusTransformer2DModel", "sample_size": 8, "in_channels": 4}, "its argument"),
        ({"_class_name": "DDPMScheduler"}, "'DDPMScheduler', which is no model of diffusers"),
        ({}, "names the class None"),
    ],
)
def test_what_a_configuration_does_not_say_is_refused(config, message):
    with pytest.raises(ModelError, match=message):
        call_for(config)
