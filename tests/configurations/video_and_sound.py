"""Published configurations of video and sound models."""

from __future__ import annotations

from typing import Any

from tests.configurations.configuration import Configuration, JsonObject


def model(name: str, **keys: Any) -> JsonObject:
    return {"_class_name": name, **keys}


COGVIDEOX = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
AUDIOLDM2 = model(
    "AudioLDM2UNet2DConditionModel",
    in_channels=8,
    out_channels=8,
    attention_head_dim=32,
    cross_attention_dim=[[None, 768, 1024]] * 4,
)

VIDEO = (
    Configuration(name="CogVideoX-2b", config=model("CogVideoXTransformer3DModel"), parameters=1_693_783_872),
    Configuration(
        name="CogVideoX-5b", config=model("CogVideoXTransformer3DModel", **COGVIDEOX), parameters=5_570_283_072
    ),
    Configuration(
        name="CogVideoX1.5-5B",
        config=model(
            "CogVideoXTransformer3DModel",
            **COGVIDEOX,
            patch_bias=False,
            patch_size_t=2,
            sample_frames=81,
            sample_height=96,
            sample_width=170,
        ),
        parameters=5_570_676_352,
    ),
    Configuration(
        name="Wan2.1-T2V-1.3B",
        config=model("WanTransformer3DModel", num_attention_heads=12, ffn_dim=8960, num_layers=30),
        parameters=1_418_996_800,
    ),
    Configuration(name="Wan2.1-T2V-14B", config=model("WanTransformer3DModel"), parameters=14_288_491_584),
    Configuration(
        name="Wan2.1-I2V-14B",
        config=model("WanTransformer3DModel", in_channels=36, image_dim=1280, added_kv_proj_dim=5120),
        parameters=16_394_878_784,
    ),
    Configuration(name="LTX-Video", config=model("LTXVideoTransformer3DModel"), parameters=1_923_385_472),
    Configuration(
        name="stable-video-diffusion-img2vid",
        config=model("UNetSpatioTemporalConditionModel", num_frames=14),
        parameters=1_524_623_082,
    ),
    Configuration(
        name="stable-diffusion-v1-5 with animatediff-motion-adapter-v1-5-2",
        config=model("UNetMotionModel", cross_attention_dim=768),
        parameters=1_312_730_244,
    ),
)

SOUND = (
    Configuration(name="stable-audio-open-1.0", config=model("StableAudioDiTModel"), parameters=1_056_939_136),
    Configuration(
        name="audioldm2, -music",
        config=AUDIOLDM2 | {"block_out_channels": [128, 256, 384, 640]},
        parameters=215_710_216,
    ),
    Configuration(
        name="audioldm2-large",
        config=AUDIOLDM2 | {"block_out_channels": [256, 512, 768, 1280]},
        parameters=829_977_608,
    ),
    Configuration(
        name="maestro-150k (Dance Diffusion)",
        config=model(
            "UNet1DModel",
            sample_size=65536,
            extra_in_channels=16,
            time_embedding_dim=16,  # today's diffusers has another default than the model was made with
            block_out_channels=[128, 128, 256, 256, *[512] * 10],
            down_block_types=["DownBlock1DNoSkip", *["DownBlock1D"] * 5, *["AttnDownBlock1D"] * 8],
            up_block_types=[*["AttnUpBlock1D"] * 8, *["UpBlock1D"] * 5, "UpBlock1DNoSkip"],
        ),
        parameters=257_901_066,
    ),
    Configuration(
        name="hopper-medium-v2 (Diffuser)",
        config=model(
            "UNet1DModel",
            sample_size=128,
            in_channels=14,
            out_channels=14,
            use_timestep_embedding=True,
            time_embedding_type="positional",
            act_fn="mish",
            flip_sin_to_cos=False,
            freq_shift=1,
            down_block_types=["DownResnetBlock1D"] * 4,
            up_block_types=["UpResnetBlock1D"] * 3,
            mid_block_type="MidResTemporalBlock1D",
            out_block_type="OutConv1DBlock",
            block_out_channels=[32, 64, 128, 256],
        ),
        parameters=3_956_302,
    ),
)
