"""A published configuration with the fewest blocks and channels that its class allows, and the same kinds of layers.

It follows from the full one, so that the two cannot drift apart: a kind of block that stands in the full one stands in
the small one, once. Heads stay more than one where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.configurations.configuration import Configuration, JsonObject
from tests.configurations.scaled_video_and_sound import SCALED

SIDE = 8
"""Sides of the sample."""

TOKENS = 5
GROUPS = 4
"""Groups of the norms in the place of 32."""

FIRST_WIDTH = 8
"""Channels of the first level; every further one has as much more."""

WIDE = 32
"""Channels of the first level where a block's norms have 32 channels a group, or 32 groups, whatever is configured."""

HEAD = 4
TEXT = 12

DEFAULT_DOWN = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]
"""Of a UNet with text that does not say its blocks."""


def scaled(full: Configuration) -> Configuration:
    """The small form of a configuration; its parameter count is not known."""
    small = dict(full.config)
    if full.class_name in SCALED:
        sizes = SCALED[full.class_name](small)
        return Configuration(name=full.name, config=small, parameters=None, sizes=sizes, refusal=full.refusal)
    {
        "UNet2DModel": _unet,
        "UNet2DConditionModel": _text_unet,
        "ControlNetModel": _controlnet,
        "DiTTransformer2DModel": _dit,
        "PixArtTransformer2DModel": _pixart,
        "SD3Transformer2DModel": _sd3,
        "FluxTransformer2DModel": _flux,
        "AuraFlowTransformer2DModel": _aura_flow,
        "SanaTransformer2DModel": _sana,
    }[full.class_name](small)
    side = 2 * SIDE if len(small.get("block_out_channels", ())) > 3 else SIDE
    sizes = {"height": side, "width": side, "tokens": TOKENS}
    return Configuration(name=full.name, config=small, parameters=None, sizes=sizes, refusal=full.refusal)


def _kept(kinds: Sequence[str], also: Sequence[object]) -> list[int]:
    """Levels of which one of each kind is left, at least two: what lies between two levels stays."""
    found: dict[object, int] = {}
    for index, kind in enumerate(zip(kinds, also, strict=True)):
        found.setdefault(kind, index)
    return sorted(found.values()) if len(found) > 1 else [0, len(kinds) - 1]


def _at(value: Any, levels: Sequence[int]) -> Any:
    """A value a level, of these levels; a value of all of them as it is."""
    return [value[index] for index in levels] if isinstance(value, (list, tuple)) else value


def _levels(small: JsonObject) -> list[int]:
    """Cut a UNet to one level a kind; which levels those are."""
    down = small.get("down_block_types") or DEFAULT_DOWN
    cross = small.get("only_cross_attention", False)
    own = _kept(down, cross if isinstance(cross, list) else [cross] * len(down))
    by_width = down[0].startswith("K")  # k-diffusion's blocks are told apart by how wide their neighbours are
    levels = list(range(len(down))) if by_width else own
    mirrored = [len(down) - 1 - index for index in reversed(levels)]
    small["down_block_types"] = _at(down, levels)
    up = small.get("up_block_types") or [kind.replace("Down", "Up") for kind in reversed(down)]
    small["up_block_types"] = _at(up, mirrored)
    if by_width:
        widths = small["block_out_channels"]
        small["block_out_channels"] = [WIDE * width // widths[0] for width in widths]
    else:
        first = WIDE if any("Skip" in kind for kind in down) else FIRST_WIDTH
        small["block_out_channels"] = [first * (index + 1) for index in range(len(levels))]
    small["layers_per_block"] = 2 if by_width else 1
    if small.get("norm_num_groups", 32) is not None:
        small["norm_num_groups"] = GROUPS
    for key in ("only_cross_attention", "cross_attention_dim"):
        if key in small:
            small[key] = _at(small[key], levels)
    return levels


def _unet(small: JsonObject) -> None:
    _levels(small)
    small["sample_size"] = SIDE
    if small.get("attention_head_dim", 8) is not None:
        small["attention_head_dim"] = HEAD
    if small.get("num_class_embeds") is not None:
        small["num_class_embeds"] = 10


def _text_unet(small: JsonObject) -> None:
    levels = _levels(small)
    if "sample_size" in small:
        small["sample_size"] = SIDE
    _transformers(small, levels)
    _text(small)
    _labels(small)
    if small.get("time_cond_proj_dim") is not None:
        small["time_cond_proj_dim"] = 6


def _controlnet(small: JsonObject) -> None:
    _text_unet(small)
    small.pop("up_block_types", None)
    small["conditioning_embedding_out_channels"] = [4, 4, 8, 8]


def _transformers(small: JsonObject, levels: Sequence[int]) -> None:
    """One transformer block, more than one head; a simple block's key is the head's width, another's their number."""
    simple = any(kind.startswith(("Simple", "K")) for kind in small["down_block_types"])
    small["attention_head_dim"] = HEAD if simple else 2
    layers = small.get("transformer_layers_per_block")
    if isinstance(layers, list):
        small["transformer_layers_per_block"] = [1 if isinstance(layers[i], int) else [1] for i in levels]
    elif layers is not None:
        small["transformer_layers_per_block"] = 1
    upward = small.get("reverse_transformer_layers_per_block")
    if upward is not None:
        kept = [upward[len(upward) - 1 - index] for index in reversed(levels)]
        small["reverse_transformer_layers_per_block"] = [1 if isinstance(one, int) else [1, 1] for one in kept]


def _text(small: JsonObject) -> None:
    own = small["cross_attention_dim"]
    if isinstance(own, list):  # every level attends to itself
        small["cross_attention_dim"] = list(small["block_out_channels"])
        return
    width = 32 if small.get("cross_attention_norm") == "group_norm" else TEXT  # the norm has 32 groups
    refiner = small.get("projection_class_embeddings_input_dim") == 5 * 256 + own
    small["cross_attention_dim"] = width
    if small.get("encoder_hid_dim") is not None:
        small["encoder_hid_dim"] = 16
    if small.get("addition_embed_type") == "text":
        small["addition_embed_type_num_heads"] = 2
    if small.get("addition_embed_type") == "text_time":
        each = 256 if refiner else 4  # the refiner is known by it
        small["addition_time_embed_dim"] = each
        small["projection_class_embeddings_input_dim"] = 5 * each + width if refiner else 6 * each + 10


def _labels(small: JsonObject) -> None:
    if small.get("num_class_embeds") is not None:
        small["num_class_embeds"] = 10
    if small.get("class_embed_type") in ("projection", "simple_projection"):
        small["projection_class_embeddings_input_dim"] = 6


def _dit(small: JsonObject) -> None:
    small |= {"sample_size": SIDE, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}
    small["num_embeds_ada_norm"] = 10


def _pixart(small: JsonObject) -> None:
    told = small.get("use_additional_conditions")
    small["use_additional_conditions"] = small["sample_size"] == 128 if told is None else told
    small |= {"sample_size": SIDE, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 12}
    small |= {"cross_attention_dim": 24, "caption_channels": TEXT}


def _sd3(small: JsonObject) -> None:
    """Two blocks: what the last one does to the text differs from all others."""
    small |= {"sample_size": SIDE, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
    small |= {"caption_projection_dim": 16, "joint_attention_dim": TEXT, "pooled_projection_dim": 10}
    small["pos_embed_max_size"] = 4 * SIDE
    if small.get("dual_attention_layers"):
        small["dual_attention_layers"] = [0]


def _flux(small: JsonObject) -> None:
    small |= {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16}
    small |= {"axes_dims_rope": [4, 6, 6], "joint_attention_dim": TEXT, "pooled_projection_dim": 10}


def _aura_flow(small: JsonObject) -> None:
    small |= {"sample_size": SIDE, "num_mmdit_layers": 1, "num_single_dit_layers": 1, "num_attention_heads": 2}
    small |= {"attention_head_dim": 8, "caption_projection_dim": 16, "joint_attention_dim": TEXT}
    small["pos_embed_max_size"] = 64


def _sana(small: JsonObject) -> None:
    small |= {"sample_size": SIDE, "in_channels": 4, "out_channels": 4, "num_layers": 1, "caption_channels": TEXT}
    small |= {"num_attention_heads": 2, "attention_head_dim": 8, "num_cross_attention_heads": 2}
    small |= {"cross_attention_head_dim": 8, "cross_attention_dim": 16}
