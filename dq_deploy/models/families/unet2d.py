"""The family `unet2d`: diffusers' UNet2DModel, unconditional or with class labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import ModelError
from dq_deploy.models.default_calls import call_for
from dq_deploy.models.families.stem import unet2d_with_stem
from dq_deploy.models.families.unets import blocks_around, checked_module, refusals_beside, sizes_for_check
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

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
MID_BLOCKS = ("UNetMidBlock2D", None)
TIME_EMBEDDINGS = ("positional", "fourier")

_SILU = "SiLU stands between the norm and the convolution"
_RESIDUAL = "input is the residual stream with several consumers"
_NO_PRODUCER = "input is the sample itself, there is no producer"


def _check_config(config: Mapping[str, Any]) -> None:
    for key, allowed in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        check_block_types(config, key, allowed)
    if config.get("mid_block_type", "UNetMidBlock2D") not in MID_BLOCKS:
        raise ModelError(f"config.json has mid_block_type {config['mid_block_type']!r}, expected 'UNetMidBlock2D'")
    time = config.get("time_embedding_type", "positional")
    if time not in TIME_EMBEDDINGS:
        raise ModelError(f"config.json has time_embedding_type {time!r}, expected one of {', '.join(TIME_EMBEDDINGS)}")
    if config.get("class_embed_type") is not None:
        raise ModelError(
            f"config.json has class_embed_type {config['class_embed_type']!r}, expected null: "
            "classes are supported as labels (num_class_embeds)"
        )


def build(config: Mapping[str, Any], *, device: str = "cpu") -> torch.nn.Module:
    """A UNet2DModel with random weights, eval mode, no gradients; `device="meta"` makes no weights.

    Raises:
        ModelError: diffusers cannot build it, or it has layers or blocks that are not supported.
    """
    from diffusers.models.embeddings import GaussianFourierProjection

    _check_config(config)
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    return checked_module(
        "UNet2DModel",
        lambda: unet2d_with_stem(plain),
        lambda module: _walk(module, call_for(config, sizes_for_check(config)), 1),
        device=device,
        also_supported=(GaussianFourierProjection,),
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


def skip_splits(module: Any, call: Call) -> dict[str, int]:
    """First-half channels of the convolutions behind an up-path concatenation of (stream, skip)."""
    splits: dict[str, int] = {}
    before = module.mid_block.resnets[-1] if module.mid_block is not None else module.down_blocks[-1].resnets[-1]
    for i, block in enumerate(module.up_blocks):
        for j, resnet in enumerate(block.resnets):
            stream = before.out_channels
            prefix = f"up_blocks.{i}.resnets.{j}"
            splits[f"{prefix}.conv1"] = stream
            if resnet.conv_shortcut is not None:
                splits[f"{prefix}.conv_shortcut"] = stream
            before = resnet
    return splits


def middle_of(module: Any, call: Call) -> str:
    """Module path of the middle attention; of the middle block where it has none, else of the first up block."""
    if module.mid_block is None:
        return "up_blocks.0"
    found = [i for i, child in enumerate(getattr(module.mid_block, "attentions", ())) if child is not None]
    return f"mid_block.attentions.{found[0]}" if found else "mid_block"


def fold_sites(module: torch.nn.Module, call: Call) -> list[FoldSite]:
    """In each attention the norm feeds q, k and v; v's rows pass linearly through PV to the output layer."""
    from diffusers.models.attention_processor import Attention

    sites = []
    for name, child in module.named_modules():
        if not isinstance(child, Attention):
            continue
        if child.group_norm is not None:
            consumers = (f"{name}.to_q", f"{name}.to_k", f"{name}.to_v")
            sites.append(FoldSite(producer=f"{name}.group_norm", kind="group_norm", consumers=consumers))
        sites.append(FoldSite(producer=f"{name}.to_v", kind="linear_rows", consumers=(f"{name}.to_out.0",)))
    return sites


def _refusal(name: str) -> str:
    last = name.rsplit(".", 1)[-1]
    if name == "conv_in":
        return _NO_PRODUCER
    if name == "conv_out" or last in ("conv1", "conv2"):
        return _SILU
    if name.startswith("time_embedding."):
        if last == "linear_1":
            return "input is the sinusoidal embedding of the timestep, there is no producer with weights"
        return "SiLU stands between the two layers"
    if last == "time_emb_proj":
        return "SiLU stands between, and the time embedding has several consumers"
    if ".upsamplers." in name:
        return "input is the resized sum of a residual addition, not one producer"
    if last in ("to_q", "to_k", "to_v"):
        return _RESIDUAL + " (this attention has no norm)"
    return _RESIDUAL


def fold_refusals(module: torch.nn.Module, call: Call) -> dict[str, str]:
    """Reason for every quantizable layer outside `fold_sites`."""
    return refusals_beside(module, fold_sites(module, call), _refusal)


def blocks_of(module: Any, call: Call) -> list[Block]:
    """Residual blocks, attentions and the time embedding whole; every other layer is its own block."""
    from diffusers.models.attention_processor import Attention
    from diffusers.models.embeddings import TimestepEmbedding
    from diffusers.models.resnet import ResnetBlock2D

    kinds = (ResnetBlock2D, Attention, TimestepEmbedding)
    return blocks_around(module, kinds, quantizable_layers(module, call))
