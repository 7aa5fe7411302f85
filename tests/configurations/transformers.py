"""Published configurations of the image transformers, and of classes that are called by their arguments alone."""

from __future__ import annotations

from typing import Any

from tests.configurations.configuration import Configuration, JsonObject


def transformer(name: str, **keys: Any) -> JsonObject:
    return {"_class_name": f"{name}Transformer2DModel", **keys}


DIT = transformer("DiT", sample_size=32, in_channels=4, out_channels=8, num_layers=28, num_embeds_ada_norm=1000)
PIXART = transformer("PixArt", sample_size=128, in_channels=4, out_channels=8, num_layers=28, caption_channels=4096)
SD3 = transformer(
    "SD3",
    sample_size=128,
    num_layers=24,
    attention_head_dim=64,
    num_attention_heads=24,
    caption_projection_dim=1536,
    pos_embed_max_size=192,
)
FLUX = transformer("Flux", guidance_embeds=True)
RMS = {"qk_norm": "rms_norm"}

TRANSFORMERS = (
    Configuration(name="DiT-XL-2-256", config=DIT, parameters=749_826_464),
    Configuration(name="DiT-XL-2-512", config=DIT | {"sample_size": 64}, parameters=749_826_464),
    Configuration(name="PixArt-XL-2-512x512", config=PIXART | {"sample_size": 64}, parameters=610_856_096),
    Configuration(name="PixArt-XL-2-1024-MS", config=PIXART, parameters=611_349_152),
    Configuration(
        name="PixArt-Sigma-XL-2-1024-MS",
        config=PIXART | {"interpolation_scale": 2, "use_additional_conditions": False},
        parameters=610_856_096,
    ),
    Configuration(name="stable-diffusion-3-medium", config=SD3, parameters=2_028_328_000),
    Configuration(
        name="stable-diffusion-3.5-medium",
        config=SD3 | RMS | {"dual_attention_layers": list(range(13)), "pos_embed_max_size": 384},
        parameters=2_243_171_520,
    ),
    Configuration(
        name="stable-diffusion-3.5-large",
        config=SD3 | RMS | {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432},
        parameters=8_056_627_520,
    ),
    Configuration(name="FLUX.1-dev, -Kontext-dev, -Krea-dev", config=FLUX, parameters=11_901_408_320),
    Configuration(name="FLUX.1-schnell", config=FLUX | {"guidance_embeds": False}, parameters=11_891_178_560),
    Configuration(
        name="FLUX.1-Fill-dev", config=FLUX | {"in_channels": 384, "out_channels": 64}, parameters=11_902_391_360
    ),
    Configuration(
        name="FLUX.1-Depth-dev, -Canny-dev",
        config=FLUX | {"in_channels": 128, "out_channels": 64},
        parameters=11_901_604_928,
    ),
    Configuration(name="flux.1-lite-8B", config=FLUX | {"num_layers": 8}, parameters=8_163_264_064),
)

OTHER_CLASSES: tuple[Configuration, ...] = (
    Configuration(
        name="AuraFlow",
        config=transformer("AuraFlow", sample_size=64, in_channels=4, joint_attention_dim=2048),
        parameters=6_833_439_744,
    ),
    Configuration(
        name="Sana_1600M_1024px",
        config=transformer(
            "Sana",
            sample_size=32,
            in_channels=32,
            out_channels=32,
            num_layers=20,
            num_attention_heads=70,
            attention_head_dim=32,
            num_cross_attention_heads=20,
            cross_attention_head_dim=112,
            cross_attention_dim=2240,
            caption_channels=2304,
            mlp_ratio=2.5,
            patch_size=1,
        ),
        parameters=1_604_462_752,
    ),
)

HUNYUAN = {
    "_class_name": "HunyuanDiT2DModel",
    "attention_head_dim": 88,
    "cross_attention_dim": 1024,
    "hidden_size": 1408,
    "in_channels": 4,
    "learn_sigma": True,
    "mlp_ratio": 4.3637,
    "num_attention_heads": 16,
    "num_layers": 40,
    "patch_size": 2,
    "pooled_projection_dim": 1024,
    "sample_size": 128,
}

OTHER_CLASSES += (
    Configuration(name="HunyuanDiT-v1.1-Diffusers", config=HUNYUAN, parameters=1_516_534_048),
    Configuration(
        name="HunyuanDiT-v1.2-Diffusers",
        config=HUNYUAN | {"use_style_cond_and_image_meta_size": False},
        parameters=1_499_952_032,
    ),
    Configuration(name="Qwen-Image", config=transformer("QwenImage"), parameters=20_430_401_088),
)

REFUSED = (
    Configuration(
        name="CogView3-Plus-3B",
        config=transformer("CogView3Plus", sample_size=128, in_channels=16, text_embed_dim=4096),
        parameters=2_848_836_672,
        refusal="nothing is known of how CogView3PlusTransformer2DModel is called",
    ),
    Configuration(
        name="wuerstchen-prior",
        config={"_class_name": "WuerstchenPrior", "c": 1536, "c_cond": 1280, "c_in": 16, "depth": 32, "nhead": 24},
        parameters=None,
        refusal="diffusers has no class of this name",
    ),
    Configuration(
        name="stable-cascade",
        config={"_class_name": "StableCascadeUNet", "in_channels": 4, "out_channels": 4},
        parameters=3_605_297_156,
        refusal="calls its timestep 'timestep_ratio'",
    ),
    Configuration(
        name="Lumina-Image-2.0",
        config=transformer("Lumina2", cap_feat_dim=2304),
        parameters=2_609_769_152,
        refusal="it would need the places of its tokens computed from the mask",
    ),
    Configuration(
        name="Z-Image, -Turbo",
        config=transformer("ZImage"),
        parameters=6_154_908_736,
        refusal="it would need a forward with a batch in front",
    ),
)
