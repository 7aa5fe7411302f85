"""The UNet of latent and stable diffusion (`input_blocks`, `middle_block`, `output_blocks`) as diffusers has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dq_deploy.errors import OptionError
from dq_deploy.readers.architectures.module_paths import (
    MOST_BLOCKS,
    Architecture,
    Arguments,
    Target,
    check_widths,
    fused_rows,
    one,
)

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}
_TRANSFORMER = ("norm", "proj_in", "proj_out")
_TRANSFORMER_BLOCK = (
    "norm1",
    "norm2",
    "norm3",
    *(f"attn{i}.{name}" for i in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")),
    "ff.net.0.proj",
    "ff.net.2",
)


@dataclass(frozen=True, kw_only=True)
class _Network:
    """The arguments that decide the shape."""

    inputs: int
    outputs: int
    size: int
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]
    heads: tuple[int, ...]
    by_head: bool
    depth: int
    context: int | None
    linear: bool
    classes: int | None


def ldm_architecture(config: Mapping[str, Any]) -> Architecture:
    """The network of the constructor arguments of latent diffusion's UNetModel.

    Raises:
        OptionError: an argument is missing, unknown, or one that diffusers cannot express.
    """
    network = _network(config)
    targets = _targets(network)
    return Architecture(
        family="unet2d" if network.context is None else "unet2d_condition",
        config=_config(network),
        targets=targets,
        first="input_blocks.0.0",
        last="out.2",
        time_layers=tuple(name for name in targets if name.startswith("time_embed.") or "emb_layers" in name),
    )


def _network(config: Mapping[str, Any]) -> _Network:
    given = Arguments(config, "architecture config")
    given.ignore("dropout", "use_checkpoint", "use_fp16", "legacy")
    for name, value in (
        ("dims", 2),
        ("conv_resample", True),
        ("use_scale_shift_norm", False),
        ("resblock_updown", False),
        ("n_embed", None),
    ):
        given.only(name, value)
    width = given.whole("model_channels")
    mult = given.wholes("channel_mult")
    factors = given.wholes("attention_resolutions", empty=True)
    heads, size_of_head = given.whole("num_heads", -1, least=-1), given.whole("num_head_channels", -1, least=-1)
    upsample = given.whole("num_heads_upsample", -1, least=-1)
    transformer = given.only("use_spatial_transformer", False, True)
    inputs, outputs, size = given.whole("in_channels"), given.whole("out_channels"), given.whole("image_size")
    context = given.whole("context_dim") if transformer else given.only("context_dim", None)
    classes = given.only("num_classes", None) if transformer else _optional(given, "num_classes")
    depth = given.whole("transformer_depth", 1, most=MOST_BLOCKS)
    linear = given.only("use_linear_in_transformer", False, True)
    by_head = not given.only("use_new_attention_order", False, True)
    blocks = given.whole("num_res_blocks", most=MOST_BLOCKS)
    given.finish()
    if mult[0] != 1:
        raise OptionError(f"settings: channel_mult begins with {mult[0]}, expected 1 as in every network of this kind")
    widths = tuple(width * m for m in mult)
    check_widths(widths)
    if heads < 1 and size_of_head < 1:
        raise OptionError("settings: architecture config needs num_heads or num_head_channels")
    if upsample not in (-1, heads):
        raise OptionError(f"settings: num_heads_upsample is {upsample}, expected -1; this is not supported")
    per_level = tuple(w // size_of_head if size_of_head > 0 else heads for w in widths)
    for channels, count in zip(widths, per_level, strict=True):
        if count < 1 or channels % count:
            raise OptionError(f"settings: {channels} channels do not part into the heads that num_heads asks for")
    return _Network(
        inputs=inputs,
        outputs=outputs,
        size=size,
        widths=widths,
        blocks=blocks,
        attention=tuple(2**level in factors for level in range(len(mult))),
        heads=per_level,
        by_head=by_head,
        depth=depth,
        context=context,
        linear=bool(linear),
        classes=classes,
    )


def _optional(given: Arguments, name: str) -> int | None:
    value = given.whole(name, 0, least=0)
    return value or None


def _config(network: _Network) -> dict[str, Any]:
    down, up = (
        ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if network.context else ("AttnDownBlock2D", "AttnUpBlock2D")
    )
    shared: dict[str, Any] = {
        "sample_size": network.size,
        "in_channels": network.inputs,
        "out_channels": network.outputs,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "down_block_types": [down if has else "DownBlock2D" for has in network.attention],
        "up_block_types": [up if has else "UpBlock2D" for has in reversed(network.attention)],
        "block_out_channels": list(network.widths),
        "layers_per_block": network.blocks,
        "downsample_padding": 1,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
    }
    if network.context is not None:
        return {
            "_class_name": "UNet2DConditionModel",
            **shared,
            "cross_attention_dim": network.context,
            "attention_head_dim": list(network.heads),  # diffusers' name for the number of heads
            "transformer_layers_per_block": network.depth,
            "use_linear_projection": network.linear,
        }
    return {
        "_class_name": "UNet2DModel",
        **shared,
        "attention_head_dim": _head_size(network),
        "num_class_embeds": network.classes,
    }


def _head_size(network: _Network) -> int | None:
    """Channels of a head, which UNet2DModel has one number for; None is one head as wide as its level."""
    used = [*(level for level, has in enumerate(network.attention) if has), len(network.widths) - 1]
    if all(network.heads[level] == 1 for level in used):
        return None
    sizes = {network.widths[level] // network.heads[level] for level in used}
    if len(sizes) > 1:
        raise OptionError(
            f"settings: num_heads makes attention heads of {', '.join(map(str, sorted(sizes)))} channels, expected one "
            "size: diffusers' UNet2DModel has one for all levels, so this network cannot be imported"
        )
    return sizes.pop()


def _targets(network: _Network) -> dict[str, tuple[Target, ...]]:
    found = {"time_embed.0": one("time_embedding.linear_1"), "time_embed.2": one("time_embedding.linear_2")}
    if network.classes is not None:
        found["label_emb"] = one("class_embedding")
    found["input_blocks.0.0"] = one("conv_in")
    levels, widths = len(network.widths), network.widths
    stream, skips, index = widths[0], [widths[0]], 1
    for level, width in enumerate(widths):
        place = f"down_blocks.{level}"
        for block in range(network.blocks):
            source = f"input_blocks.{index}"
            _add_resnet(found, f"{source}.0", f"{place}.resnets.{block}", shortcut=stream != width)
            if network.attention[level]:
                _add_attention(found, network, level, f"{source}.1", f"{place}.attentions.{block}")
            stream, index = width, index + 1
            skips.append(width)
        if level < levels - 1:
            found[f"input_blocks.{index}.0.op"] = one(f"{place}.downsamplers.0.conv")
            skips.append(width)
            index += 1
    _add_resnet(found, "middle_block.0", "mid_block.resnets.0", shortcut=False)
    _add_attention(found, network, levels - 1, "middle_block.1", "mid_block.attentions.0")
    _add_resnet(found, "middle_block.2", "mid_block.resnets.1", shortcut=False)
    index = 0
    for level in reversed(range(levels)):
        place = f"up_blocks.{levels - 1 - level}"
        for block in range(network.blocks + 1):
            source = f"output_blocks.{index}"
            shortcut = stream + skips.pop() != widths[level]
            _add_resnet(found, f"{source}.0", f"{place}.resnets.{block}", shortcut=shortcut)
            if network.attention[level]:
                _add_attention(found, network, level, f"{source}.1", f"{place}.attentions.{block}")
            if level and block == network.blocks:
                found[f"{source}.{1 + network.attention[level]}.conv"] = one(f"{place}.upsamplers.0.conv")
            stream, index = widths[level], index + 1
    return {**found, "out.0": one("conv_norm_out"), "out.2": one("conv_out")}


def _add_resnet(found: dict[str, tuple[Target, ...]], source: str, target: str, *, shortcut: bool) -> None:
    for name, theirs in _RESNET.items():
        found[f"{source}.{name}"] = one(f"{target}.{theirs}")
    if shortcut:
        found[f"{source}.skip_connection"] = one(f"{target}.conv_shortcut")


def _add_attention(
    found: dict[str, tuple[Target, ...]], network: _Network, level: int, source: str, target: str
) -> None:
    if network.context is not None:
        inner = [f"transformer_blocks.{i}.{name}" for i in range(network.depth) for name in _TRANSFORMER_BLOCK]
        for name in (*_TRANSFORMER, *inner):
            found[f"{source}.{name}"] = one(f"{target}.{name}")
        return
    rows = fused_rows(network.widths[level], network.heads[level], by_head=network.by_head)
    found[f"{source}.norm"] = one(f"{target}.group_norm")
    found[f"{source}.qkv"] = tuple(
        Target(name=f"{target}.{name}", rows=mine) for name, mine in zip(("to_q", "to_k", "to_v"), rows, strict=True)
    )
    found[f"{source}.proj_out"] = one(f"{target}.to_out.0")
