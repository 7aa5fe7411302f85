"""Published configurations of UNet2DModel."""

from __future__ import annotations

from typing import Any

from tests.configurations.configuration import Configuration, JsonObject


def unet(**keys: Any) -> JsonObject:
    return {"_class_name": "UNet2DModel", **keys}


def levels(kinds: str) -> JsonObject:
    """Block types by a letter a level, mirrored going up: D plain, A attending, R resampling, S and T with skips."""
    names = {"D": "%sBlock2D", "A": "Attn%sBlock2D", "R": "Resnet%ssampleBlock2D"}
    names |= {"S": "Skip%sBlock2D", "T": "AttnSkip%sBlock2D"}
    return {
        "down_block_types": [names[kind] % "Down" for kind in kinds],
        "up_block_types": [names[kind] % "Up" for kind in reversed(kinds)],
    }


DDPM = {
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "layers_per_block": 2,
    "norm_eps": 1e-06,
}
DDPM_256 = unet(**DDPM, **levels("DDDDAD"), sample_size=256, block_out_channels=[128, 128, 256, 256, 512, 512])
NCSNPP = {
    "attention_head_dim": None,
    "freq_shift": 0,
    "mid_block_scale_factor": 1.4142135623730951,
    "norm_eps": 1e-06,
    "norm_num_groups": None,
    "time_embedding_type": "fourier",
}
CONSISTENCY = {"attention_head_dim": 64, "freq_shift": 0, "downsample_type": "resnet", "upsample_type": "resnet"}

UNETS = (
    Configuration(
        name="ddpm-cifar10-32",
        config=unet(**DDPM, **levels("DADD"), sample_size=32, block_out_channels=[128, 256, 256, 256]),
        parameters=35_746_307,
    ),
    Configuration(name="ddpm-celebahq-256, -church-256, -bedroom-256", config=DDPM_256, parameters=113_673_219),
    Configuration(
        name="ddpm-butterflies-128",
        config=unet(
            **levels("DDDDAD"), sample_size=128, layers_per_block=2, block_out_channels=[128, 128, 256, 256, 512, 512]
        ),
        parameters=113_673_219,
    ),
    Configuration(
        name="audio-diffusion-256",
        config=DDPM_256 | {"in_channels": 1, "out_channels": 1, "downsample_padding": 1, "attention_head_dim": 8},
        parameters=113_668_609,
    ),
    Configuration(
        name="ldm-celebahq-256",
        config=unet(
            **levels("DAAA"),
            sample_size=64,
            layers_per_block=2,
            attention_head_dim=32,
            block_out_channels=[224, 448, 672, 896],
            freq_shift=0,
        ),
        parameters=274_056_163,
    ),
    Configuration(
        name="ncsnpp-celebahq-256, -church-256, -ffhq-256",
        config=unet(
            **NCSNPP,
            **levels("SSSSTSS"),
            sample_size=256,
            layers_per_block=2,
            block_out_channels=[128, 128, 256, 256, 256, 256, 256],
        ),
        parameters=65_574_549,
    ),
    Configuration(
        name="ncsnpp-ffhq-1024",
        config=unet(
            **NCSNPP,
            **levels("SSSSSTSS"),
            sample_size=1024,
            layers_per_block=1,
            block_out_channels=[16, 32, 64, 128, 256, 512, 512, 512],
        ),
        parameters=105_785_896,
    ),
    Configuration(
        name="diffusers-cd_imagenet64_l2",
        config=unet(
            **CONSISTENCY,
            **levels("RAAA"),
            sample_size=64,
            layers_per_block=3,
            num_class_embeds=1000,
            block_out_channels=[192, 384, 576, 768],
            resnet_time_scale_shift="scale_shift",
        ),
        parameters=295_897_731,
    ),
    Configuration(
        name="diffusers-cd_cat256_l2, _bedroom256_l2",
        config=unet(
            **CONSISTENCY,
            **levels("RRRAAA"),
            sample_size=256,
            layers_per_block=2,
            block_out_channels=[256, 256, 512, 512, 1024, 1024],
            resnet_time_scale_shift="default",
        ),
        parameters=526_304_771,
    ),
    Configuration(
        name="karlo-v1-alpha super_res_first",
        config=unet(
            **levels("RRRR"),
            sample_size=256,
            in_channels=6,
            layers_per_block=3,
            add_attention=False,
            block_out_channels=[320, 640, 960, 1280],
            resnet_time_scale_shift="default",
            freq_shift=0,
        ),
        parameters=691_579_523,
    ),
)
