"""How video and sound models are scaled down: one block, one level a kind, more than one head; likewise Hunyuan, Qwen.

Each function changes a configuration in place and gives the sizes of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.configurations.configuration import JsonObject

SIDE, TOKENS, FRAMES, LENGTH = 8, 5, 3, 32
TEXT = 12
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
VIDEO = {"frames": FRAMES, "height": SIDE, "width": SIDE, "tokens": TOKENS}


def _cogvideox(small: JsonObject) -> dict[str, int]:
    small |= {**HEADS, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8, "text_embed_dim": TEXT}
    small |= {"num_layers": 1, "sample_width": SIDE, "sample_height": SIDE, "max_text_seq_length": TOKENS}
    small["sample_frames"] = 9
    return {}


def _wan(small: JsonObject) -> dict[str, int]:
    pictured = small.get("image_dim") is not None
    small |= {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4}
    small |= {"text_dim": TEXT, "freq_dim": 8, "ffn_dim": 16, "num_layers": 1}
    if pictured:
        small |= {"in_channels": 9, "image_dim": 10, "added_kv_proj_dim": 24}
    return VIDEO


def _ltx(small: JsonObject) -> dict[str, int]:
    small |= {**HEADS, "in_channels": 8, "out_channels": 8, "cross_attention_dim": 16, "num_layers": 1}
    small["caption_channels"] = TEXT
    return {**VIDEO, "height": 4, "width": 4}


def _svd(small: JsonObject) -> dict[str, int]:
    """Norms of 32 groups, whatever is configured."""
    small |= {"block_out_channels": [32, 64], "layers_per_block": 1, "num_attention_heads": [2, 2]}
    small["down_block_types"] = ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"]
    small["up_block_types"] = ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"]
    small |= {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 12}
    small |= {"cross_attention_dim": TEXT, "num_frames": 2}
    return {"height": SIDE, "width": SIDE}


def _motion(small: JsonObject) -> dict[str, int]:
    small |= {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
    small["down_block_types"] = ["CrossAttnDownBlockMotion", "DownBlockMotion"]
    small["up_block_types"] = ["UpBlockMotion", "CrossAttnUpBlockMotion"]
    small |= {"cross_attention_dim": TEXT, "num_attention_heads": 2, "motion_num_attention_heads": 2}
    return {**VIDEO, "frames": 2}


def _stable_audio(small: JsonObject) -> dict[str, int]:
    small |= {"sample_size": SIDE, "in_channels": 8, "out_channels": 8, "num_layers": 1, "attention_head_dim": 8}
    small |= {"num_attention_heads": 4, "num_key_value_attention_heads": 2, "cross_attention_dim": 16}
    small |= {"time_proj_dim": 8, "global_states_input_dim": 10, "cross_attention_input_dim": TEXT}
    return {"tokens": TOKENS}


def _audioldm2(small: JsonObject) -> dict[str, int]:
    small |= {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 2}
    small["down_block_types"] = ["CrossAttnDownBlock2D", "DownBlock2D"]
    small["up_block_types"] = ["UpBlock2D", "CrossAttnUpBlock2D"]
    small["cross_attention_dim"] = [[None, 10, TEXT]] * 2
    return {"height": SIDE, "width": 4, "tokens": TOKENS}


def _unet1d(small: JsonObject) -> dict[str, int]:
    """One level a kind of block; attention has heads of 32 channels."""
    down, up = list(dict.fromkeys(small["down_block_types"])), list(dict.fromkeys(small["up_block_types"]))
    if len(down) == 1:  # it goes up once less than down
        small |= {"down_block_types": down * 2, "up_block_types": up, "block_out_channels": [8, 16]}
        small["in_channels"] = small["out_channels"] = 4
    else:
        small |= {"down_block_types": down, "up_block_types": up, "block_out_channels": [32, 32, 64]}
    return {"length": LENGTH}


def _hunyuan(small: JsonObject) -> dict[str, int]:
    """Two blocks: the second reads what the first gave, beside its own input."""
    small |= {**HEADS, "hidden_size": 16, "num_layers": 2, "sample_size": SIDE, "mlp_ratio": 2.0}
    small |= {"cross_attention_dim": TEXT, "cross_attention_dim_t5": 16, "pooled_projection_dim": 10}
    small |= {"text_len": TOKENS, "text_len_t5": TOKENS + 1}
    return {}


def _qwen_image(small: JsonObject) -> dict[str, int]:
    small |= {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 16, "out_channels": 4}
    small |= {"num_layers": 1, "joint_attention_dim": TEXT, "axes_dims_rope": [4, 6, 6]}
    return {"height": SIDE, "width": SIDE, "tokens": TOKENS}


SCALED: Mapping[str, Callable[[JsonObject], dict[str, int]]] = {
    "CogVideoXTransformer3DModel": _cogvideox,
    "WanTransformer3DModel": _wan,
    "LTXVideoTransformer3DModel": _ltx,
    "UNetSpatioTemporalConditionModel": _svd,
    "UNetMotionModel": _motion,
    "StableAudioDiTModel": _stable_audio,
    "AudioLDM2UNet2DConditionModel": _audioldm2,
    "UNet1DModel": _unet1d,
    "HunyuanDiT2DModel": _hunyuan,
    "QwenImageTransformer2DModel": _qwen_image,
}
