"""Published configurations of UNet2DConditionModel and of ControlNetModel."""

from __future__ import annotations

from typing import Any

from tests.configurations.configuration import Configuration, JsonObject


def unet(**keys: Any) -> JsonObject:
    return {"_class_name": "UNet2DConditionModel", **keys}


def levels(kinds: str) -> JsonObject:
    """Block types by a letter a level, mirrored on the way up: C with text, D plain, S simple, R resampled in them."""
    names = {"C": "CrossAttn%sBlock2D", "D": "%sBlock2D", "S": "SimpleCrossAttn%sBlock2D", "R": "Resnet%ssampleBlock2D"}
    names |= {"K": "K%sBlock2D", "L": "KCrossAttn%sBlock2D"}
    return {
        "down_block_types": [names[kind] % "Down" for kind in kinds],
        "up_block_types": [names[kind] % "Up" for kind in reversed(kinds)],
    }


SD1 = unet(sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=[320, 640, 1280, 1280])
SD2 = SD1 | {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
SD21 = SD2 | {"sample_size": 96, "upcast_attention": True}
ADDED = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
SDXL = unet(
    **levels("DCC"),
    **ADDED,
    sample_size=128,
    cross_attention_dim=2048,
    attention_head_dim=[5, 10, 20],
    block_out_channels=[320, 640, 1280],
    transformer_layers_per_block=[1, 2, 10],
    projection_class_embeddings_input_dim=2816,
    use_linear_projection=True,
)
SMALL_SDXL = SDXL | {"mid_block_type": "UNetMidBlock2D"}
SMALL_SD = SD1 | {"layers_per_block": 1}
KANDINSKY = unet(
    **levels("RSSS"),
    sample_size=64,
    out_channels=8,
    layers_per_block=3,
    attention_head_dim=64,
    block_out_channels=[384, 768, 1152, 1536],
    cross_attention_dim=768,
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    resnet_time_scale_shift="scale_shift",
)
KANDINSKY_21 = KANDINSKY | {
    "addition_embed_type": "text_image",
    "encoder_hid_dim": 1024,
    "encoder_hid_dim_type": "text_image_proj",
}
KANDINSKY_22 = KANDINSKY | {
    "addition_embed_type": "image",
    "encoder_hid_dim": 1280,
    "encoder_hid_dim_type": "image_proj",
}
DEEPFLOYD = unet(
    **levels("RSSS"),
    act_fn="gelu",
    attention_head_dim=64,
    addition_embed_type="text",
    addition_embed_type_num_heads=64,
    cross_attention_norm="group_norm",
    encoder_hid_dim=4096,
    encoder_hid_dim_type="text_proj",
    in_channels=3,
    out_channels=6,
    layers_per_block=3,
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    resnet_out_scale_factor=1.41421,
    resnet_skip_time_act=True,
    resnet_time_scale_shift="scale_shift",
    sample_size=64,
    time_embedding_act_fn="gelu",
)
UPSCALING_FLOYD = DEEPFLOYD | {
    "sample_size": 256,
    "in_channels": 6,
    "class_embed_type": "timestep",
    "only_cross_attention": True,
    "mid_block_only_cross_attention": True,
}
AUDIOLDM = unet(
    **levels("DCCC"),
    sample_size=128,
    in_channels=8,
    out_channels=8,
    class_embed_type="simple_projection",
    class_embeddings_concat=True,
    projection_class_embeddings_input_dim=512,
)
CONTROLNET = {"_class_name": "ControlNetModel", "cross_attention_dim": 768, "attention_head_dim": 8}

STABLE_DIFFUSION = (
    Configuration(name="stable-diffusion-v1-4, -v1-5", config=SD1, parameters=859_520_964),
    Configuration(name="stable-diffusion-inpainting", config=SD1 | {"in_channels": 9}, parameters=859_535_364),
    Configuration(name="instruct-pix2pix", config=SD1 | {"in_channels": 8}, parameters=859_532_484),
    Configuration(name="stable-diffusion-2-1 (v-prediction)", config=SD21, parameters=865_910_724),
    Configuration(name="stable-diffusion-2-1-base, sd-turbo", config=SD2, parameters=865_910_724),
    Configuration(name="stable-diffusion-2-inpainting", config=SD2 | {"in_channels": 9}, parameters=865_925_124),
    Configuration(
        name="stable-diffusion-2-depth", config=SD2 | {"in_channels": 5, "sample_size": 32}, parameters=865_913_604
    ),
    Configuration(name="marigold-depth-v1-0", config=SD21 | {"in_channels": 8}, parameters=865_922_244),
    Configuration(
        name="stable-diffusion-2-1-unclip",
        config=SD21 | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2048},
        parameters=870_173_124,
    ),
    Configuration(
        name="stable-diffusion-2-1-unclip-small",
        config=SD21 | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 1536},
        parameters=869_517_764,
    ),
    Configuration(
        name="stable-diffusion-x4-upscaler",
        config=SD2
        | levels("DCCC")
        | {
            "attention_head_dim": 8,
            "block_out_channels": [256, 512, 512, 1024],
            "in_channels": 7,
            "num_class_embeds": 1000,
            "only_cross_attention": [True, True, True, False],
            "sample_size": 128,
        },
        parameters=473_398_020,
    ),
    Configuration(
        name="sd-x2-latent-upscaler",
        config=unet(
            **levels("KLLL"),
            act_fn="gelu",
            attention_head_dim=64,
            block_out_channels=[384, 384, 768, 768],
            conv_in_kernel=1,
            conv_out_kernel=1,
            cross_attention_dim=768,
            cross_attention_norm="layer_norm",
            in_channels=8,
            layers_per_block=4,
            mid_block_type=None,
            norm_num_groups=None,
            out_channels=5,
            resnet_time_scale_shift="scale_shift",
            time_cond_proj_dim=896,
            time_embedding_type="fourier",
            timestep_post_act="gelu",
        ),
        sizes={"height": 128, "width": 128},
        parameters=372_560_645,
    ),
    Configuration(name="LCM_Dreamshaper_v7", config=SD1 | {"time_cond_proj_dim": 256}, parameters=859_602_884),
    Configuration(
        name="gligen-1-4-generation-text-box", config=SD1 | {"attention_type": "gated"}, parameters=1_068_623_204
    ),
    Configuration(name="bk-sdm-base", config=SMALL_SD, parameters=579_384_964),
    Configuration(name="bk-sdm-small, small-sd", config=SMALL_SD | {"mid_block_type": None}, parameters=482_346_884),
    Configuration(
        name="bk-sdm-tiny, tiny-sd",
        config=SMALL_SD | levels("CCC") | {"block_out_channels": [320, 640, 1280], "mid_block_type": None},
        parameters=323_384_964,
    ),
    Configuration(
        name="ldm-text2im-large-256",
        config=SD1 | {"sample_size": 32, "cross_attention_dim": 1280},
        parameters=872_300_484,
    ),
)

XL = (
    Configuration(
        name="stable-diffusion-xl-base-1.0, playground-v2, playground-v2.5 (EDM)", config=SDXL, parameters=2_567_463_684
    ),
    Configuration(name="sdxl-turbo", config=SDXL | {"sample_size": 64}, parameters=2_567_463_684),
    Configuration(
        name="stable-diffusion-xl-1.0-inpainting-0.1", config=SDXL | {"in_channels": 9}, parameters=2_567_478_084
    ),
    Configuration(name="lcm-sdxl", config=SDXL | {"time_cond_proj_dim": 256}, parameters=2_567_545_604),
    Configuration(
        name="stable-diffusion-xl-refiner-1.0",
        config=SDXL
        | levels("DCCD")
        | {
            "attention_head_dim": [6, 12, 24, 24],
            "block_out_channels": [384, 768, 1536, 1536],
            "cross_attention_dim": 1280,
            "projection_class_embeddings_input_dim": 2560,
            "transformer_layers_per_block": 4,
        },
        parameters=2_259_526_660,
    ),
    Configuration(
        name="SSD-1B",
        config=SMALL_SDXL
        | {
            "transformer_layers_per_block": [1, [2, 2], [4, 4]],
            "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
        },
        parameters=1_331_334_404,
    ),
    Configuration(
        name="Segmind-Vega",
        config=SMALL_SDXL
        | {
            "transformer_layers_per_block": [1, [1, 1], [2, 2]],
            "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
        },
        parameters=745_225_604,
    ),
    Configuration(
        name="Kolors",
        config=SDXL | {"encoder_hid_dim": 4096, "projection_class_embeddings_input_dim": 5632},
        parameters=2_579_458_820,
    ),
)

OTHERS = (
    Configuration(name="kandinsky-2-1", config=KANDINSKY_21, parameters=1_228_661_768),
    Configuration(name="kandinsky-2-1-inpaint", config=KANDINSKY_21 | {"in_channels": 9}, parameters=1_228_679_048),
    Configuration(name="kandinsky-2-2-decoder", config=KANDINSKY_22, parameters=1_253_057_288),
    Configuration(
        name="kandinsky-2-2-decoder-inpaint", config=KANDINSKY_22 | {"in_channels": 9}, parameters=1_253_074_568
    ),
    Configuration(
        name="kandinsky-2-2-controlnet-depth",
        config=KANDINSKY_22 | {"addition_embed_type": "image_hint", "in_channels": 8},
        parameters=1_253_429_212,
    ),
    Configuration(
        name="karlo-v1-alpha decoder",
        config=KANDINSKY
        | {
            "block_out_channels": [320, 640, 960, 1280],
            "class_embed_type": "identity",
            "cross_attention_dim": 1536,
            "in_channels": 3,
            "out_channels": 6,
        },
        parameters=885_439_686,
    ),
    Configuration(
        name="IF-I-M-v1.0",
        config=DEEPFLOYD | {"block_out_channels": [192, 384, 576, 768], "cross_attention_dim": 768},
        parameters=371_605_830,
    ),
    Configuration(
        name="IF-I-XL-v1.0",
        config=DEEPFLOYD | {"block_out_channels": [704, 1408, 2112, 2816], "cross_attention_dim": 2816},
        parameters=4_304_695_110,
    ),
    Configuration(
        name="IF-II-M-v1.0",
        config=UPSCALING_FLOYD | {"block_out_channels": [128, 256, 512, 1024], "cross_attention_dim": 1024},
        parameters=421_898_630,
    ),
    Configuration(
        name="IF-II-L-v1.0",
        config=UPSCALING_FLOYD | {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 1280},
        parameters=1_059_379_910,
    ),
    Configuration(
        name="audioldm-s-full-v2",
        config=AUDIOLDM
        | {
            "attention_head_dim": [4, 8, 12, 20],
            "block_out_channels": [128, 256, 384, 640],
            "cross_attention_dim": [128, 256, 384, 640],
        },
        parameters=185_036_552,
    ),
    Configuration(
        name="audioldm-l-full",
        config=AUDIOLDM
        | {
            "attention_head_dim": [8, 16, 24, 40],
            "block_out_channels": [256, 512, 768, 1280],
            "cross_attention_dim": [256, 512, 768, 1280],
        },
        parameters=739_139_080,
    ),
)

CONTROLNETS = (
    Configuration(
        name="sd-controlnet-canny, -depth, -openpose",
        config=CONTROLNET,
        sizes={"height": 64, "width": 64},
        parameters=361_279_120,
    ),
    Configuration(
        name="controlnet-canny-sdxl-1.0",
        config=CONTROLNET
        | ADDED
        | {
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "cross_attention_dim": 2048,
            "down_block_types": SDXL["down_block_types"],
            "projection_class_embeddings_input_dim": 2816,
            "transformer_layers_per_block": [1, 2, 10],
            "use_linear_projection": True,
        },
        sizes={"height": 128, "width": 128},
        parameters=1_251_014_160,
    ),
)

TEXT_UNETS = STABLE_DIFFUSION + XL + OTHERS
