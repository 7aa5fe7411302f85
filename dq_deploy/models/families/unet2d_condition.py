"""The family `unet2d_condition`: diffusers' UNet2DConditionModel of Stable Diffusion 1.x and 2.x and of SDXL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import ModelError
from dq_deploy.models.default_calls import call_for
from dq_deploy.models.families import unet2d
from dq_deploy.models.families.transformer_folds import transformer_fold_refusals, transformer_fold_sites
from dq_deploy.models.families.unets import blocks_around, checked_module, sizes_for_check
from dq_deploy.models.layers import (
    Block,
    FoldSite,
    LayerSite,
    Macs,
    Walk,
    check_block_types,
    macs_of_walk,
    walk,
)
from dq_deploy.record import Call

if TYPE_CHECKING:
    import torch

DOWN_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D")
UP_BLOCKS = ("CrossAttnUpBlock2D", "UpBlock2D")
MID_BLOCKS = ("UNetMidBlock2DCrossAttn", None)
_ONLY: dict[str, tuple[Any, ...]] = {
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default", None),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False, None),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (False, None),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "num_class_embeds": (None,),
    "resnet_skip_time_act": (False, None),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_type": ("positional", None),
    "timestep_post_act": (None,),
}
"""Values of the configuration that this family computes; the first is written in the message."""


def _check_config(config: Mapping[str, Any]) -> None:
    for key, allowed in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        check_block_types(config, key, allowed)
    if config.get("mid_block_type", MID_BLOCKS[0]) not in MID_BLOCKS:
        raise ModelError(f"config.json has mid_block_type {config['mid_block_type']!r}, expected {MID_BLOCKS[0]!r}")
    for key, values in _ONLY.items():
        if config.get(key) not in values:
            expected = " or ".join("null" if value is None else repr(value) for value in values)
            raise ModelError(f"config.json has {key} {config[key]!r}, expected {expected}; this is not supported")
    cross = config.get("only_cross_attention", False)
    if any(cross) if isinstance(cross, (list, tuple)) else cross:
        raise ModelError(f"config.json has only_cross_attention {cross!r}, expected false; this is not supported")
    call_for(config, sizes_for_check(config))  # which widths it needs


def build(config: Mapping[str, Any], *, device: str = "cpu") -> torch.nn.Module:
    """A UNet2DConditionModel with random weights, eval mode, no gradients; `device="meta"` makes no weights.

    Raises:
        ModelError: diffusers cannot build it, or it has layers, blocks or conditions that are not supported.
    """
    from diffusers import UNet2DConditionModel

    _check_config(config)
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    return checked_module(
        "UNet2DConditionModel",
        lambda: UNet2DConditionModel(**plain),
        lambda module: _walk(module, call_for(config, sizes_for_check(config)), 1),
        device=device,
    )


def _walk(module: torch.nn.Module, call: Call, batch: int) -> Walk:
    from diffusers.models.attention_processor import Attention

    return walk(module, call, batch, Attention)


def quantizable_layers(module: torch.nn.Module, call: Call, *, batch: int = 1) -> list[LayerSite]:
    """Linear layers and convolutions in execution order."""
    return list(_walk(module, call, batch).sites)


def macs_of(module: torch.nn.Module, call: Call) -> Macs:
    """Work of one sample."""
    return macs_of_walk(_walk(module, call, 1))


def skip_splits(module: torch.nn.Module, call: Call) -> dict[str, int]:
    """First-half channels of the convolutions behind an up-path concatenation of (stream, skip)."""
    return unet2d.skip_splits(module, call)


def middle_of(module: torch.nn.Module, call: Call) -> str:
    """Module path of the middle transformer, of the middle block or the first up block where there is none."""
    return unet2d.middle_of(module, call)


def fold_sites(module: torch.nn.Module, call: Call) -> list[FoldSite]:
    """The folds of the spatial transformers; see `dq_deploy.models.families.transformer_folds`."""
    return transformer_fold_sites(module)


def fold_refusals(module: torch.nn.Module, call: Call) -> dict[str, str]:
    """Reason for every quantizable layer outside `fold_sites`."""
    return transformer_fold_refusals(module)


def blocks_of(module: Any, call: Call) -> list[Block]:
    """Residual blocks, transformer blocks and the embeddings whole; every other layer is its own block."""
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.embeddings import TimestepEmbedding
    from diffusers.models.resnet import ResnetBlock2D

    kinds = (ResnetBlock2D, BasicTransformerBlock, TimestepEmbedding)
    return blocks_around(module, kinds, quantizable_layers(module, call))
