"""The UNet of DDIM and DDPM (`conv_in`, `down.L.block.B`, `mid`, `up`, `conv_out`) as diffusers' UNet2DModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dq_deploy.errors import OptionError
from dq_deploy.readers.architectures.module_paths import MOST_BLOCKS, Architecture, Arguments, Target, check_widths, one

_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "temb_proj": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def ddim_architecture(config: Mapping[str, Any]) -> Architecture:
    """The network of a DDIM configuration: its sections `model` and `data`.

    Raises:
        OptionError: an argument is missing, unknown, or one that diffusers cannot express.
    """
    model, data = config.get("model"), config.get("data")
    if not isinstance(model, dict) or not isinstance(data, dict):
        raise OptionError(
            "settings: architecture config needs the sections model and data, as DDIM's own file has them"
        )
    given = Arguments(model, "architecture config model")
    given.ignore("dropout", "var_type", "ema_rate", "ema")
    given.only("type", "simple")
    given.only("resamp_with_conv", True, why="pooling instead of convolutions is not supported")
    ch = given.whole("ch")
    mult = given.wholes("ch_mult")
    blocks = given.whole("num_res_blocks", most=MOST_BLOCKS)
    resolutions = given.wholes("attn_resolutions", empty=True)
    inputs, outputs = given.whole("in_channels"), given.whole("out_ch")
    given.finish()
    check_widths([ch * m for m in mult])
    size = Arguments(data, "architecture config data").whole("image_size")
    if size % 2 ** (len(mult) - 1):
        raise OptionError(f"settings: image_size is {size}, expected a multiple of {2 ** (len(mult) - 1)}")
    attention = [size // 2**level in resolutions for level in range(len(mult))]
    # diffusers has one width for the first convolution and the first level; see dq_deploy.models.families.stem
    stem = {} if mult[0] == 1 else {"stem_channels": ch, "time_embedding_dim": 4 * ch}
    return Architecture(
        family="unet2d",
        config={
            "_class_name": "UNet2DModel",
            "sample_size": size,
            "in_channels": inputs,
            "out_channels": outputs,
            "freq_shift": 1,
            "flip_sin_to_cos": False,
            "down_block_types": ["AttnDownBlock2D" if has else "DownBlock2D" for has in attention],
            "up_block_types": ["AttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)],
            "block_out_channels": [ch * m for m in mult],
            "layers_per_block": blocks,
            "downsample_padding": 0,
            "attention_head_dim": None,
            "norm_num_groups": 32,
            "norm_eps": 1e-6,
            **stem,
        },
        targets=_targets(ch, [ch * m for m in mult], blocks, attention),
        first="conv_in",
        last="conv_out",
        time_layers=("temb.dense.0", "temb.dense.1"),
    )


def _targets(stem: int, widths: list[int], blocks: int, attention: list[bool]) -> dict[str, tuple[Target, ...]]:
    found = {
        "temb.dense.0": one("time_embedding.linear_1"),
        "temb.dense.1": one("time_embedding.linear_2"),
        "conv_in": one("conv_in"),
    }
    levels = len(widths)
    stream, skips = stem, [stem]
    for level, width in enumerate(widths):
        for block in range(blocks):
            place = f"down_blocks.{level}"
            _add_resnet(found, f"down.{level}.block.{block}", f"{place}.resnets.{block}", shortcut=stream != width)
            if attention[level]:
                _add_attention(found, f"down.{level}.attn.{block}", f"{place}.attentions.{block}")
            stream = width
            skips.append(width)
        if level < levels - 1:
            found[f"down.{level}.downsample.conv"] = one(f"down_blocks.{level}.downsamplers.0.conv")
            skips.append(width)
    _add_resnet(found, "mid.block_1", "mid_block.resnets.0", shortcut=False)
    _add_attention(found, "mid.attn_1", "mid_block.attentions.0")
    _add_resnet(found, "mid.block_2", "mid_block.resnets.1", shortcut=False)
    for level in reversed(range(levels)):
        place = f"up_blocks.{levels - 1 - level}"
        for block in range(blocks + 1):
            shortcut = stream + skips.pop() != widths[level]
            _add_resnet(found, f"up.{level}.block.{block}", f"{place}.resnets.{block}", shortcut=shortcut)
            if attention[level]:
                _add_attention(found, f"up.{level}.attn.{block}", f"{place}.attentions.{block}")
            stream = widths[level]
        if level:
            found[f"up.{level}.upsample.conv"] = one(f"{place}.upsamplers.0.conv")
    return {**found, "norm_out": one("conv_norm_out"), "conv_out": one("conv_out")}


def _add_resnet(found: dict[str, tuple[Target, ...]], source: str, target: str, *, shortcut: bool) -> None:
    for name, theirs in _RESNET.items():
        found[f"{source}.{name}"] = one(f"{target}.{theirs}")
    if shortcut:
        found[f"{source}.nin_shortcut"] = one(f"{target}.conv_shortcut")


def _add_attention(found: dict[str, tuple[Target, ...]], source: str, target: str) -> None:
    for name, theirs in _ATTENTION.items():
        found[f"{source}.{name}"] = one(f"{target}.{theirs}")
