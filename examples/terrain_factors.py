"""Factors that keep the sums of a diffusers UNet2DModel small, and what it computes as it is.

Nothing evens out the sums of residual blocks, so they can grow from block to block. They may be multiplied by any
factor all the same: what reads them is a group norm, which divides by their spread, or the 1x1 convolution beside a
block, whose weights can take the factor back. With factors h and s of the two halves of a concatenation and c of the
block's output::

    conv_shortcut:  columns of each half times c / h and c / s, bias times c
    conv2, and an attention's to_out:  weights and bias times c

A block without such a convolution adds its input itself, so both have one factor; so have halves of which one group of
the norm holds channels of both. All factors are powers of two: no number is rounded otherwise than before.

Only a norm's eps sees a factor. Where the spread is small enough to feel it, at the first sums and behind each conv1,
the factor is that of conv_in, and eps takes its square.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import diffusers
    import torch

LIMIT = 4096.0
"""The largest value of sums that were measured; other inputs may give twice as much before float16 cares."""


@dataclass(frozen=True, kw_only=True)
class Half:
    """Sums that a block reads, alone or as one half of a concatenation.

    Attributes:
        stream: number of the sums, which share one factor.
        channels: of them.
    """

    stream: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class Block:
    """A residual block or an attention.

    Attributes:
        name: of the module.
        reads: one, or the two halves of a concatenation.
        writes: stream of its output.
    """

    name: str
    reads: tuple[Half, ...]
    writes: int


def blocks_of(unet: diffusers.UNet2DModel) -> Iterator[Block]:
    """The blocks in the order in which they run; stream 0 is conv_in's, a block with a 1x1 convolution begins one."""
    now = Half(stream=0, channels=unet.conv_in.out_channels)
    skips = [now]
    streams = 1

    def read(name: str, *reads: Half) -> Block:
        nonlocal now, streams
        module = unet.get_submodule(name)
        own = getattr(module, "conv_shortcut", None) is not None
        now = Half(stream=streams if own else reads[0].stream, channels=getattr(module, "out_channels", now.channels))
        streams += own
        return Block(name=name, reads=reads, writes=now.stream)

    def attention(place: str, number: int) -> Iterator[Block]:
        if hasattr(unet.get_submodule(place), "attentions"):
            yield read(f"{place}.attentions.{number}", now)

    for level, down in enumerate(unet.down_blocks):
        place = f"down_blocks.{level}"
        for number in range(len(down.resnets)):
            yield read(f"{place}.resnets.{number}", now)
            yield from attention(place, number)
            skips.append(now)
        for number in range(len(down.downsamplers or ())):
            yield read(f"{place}.downsamplers.{number}", now)
            skips.append(now)
    yield read("mid_block.resnets.0", now)
    yield from attention("mid_block", 0)
    yield read("mid_block.resnets.1", now)
    for level, up in enumerate(unet.up_blocks):
        place = f"up_blocks.{level}"
        for number in range(len(up.resnets)):
            yield read(f"{place}.resnets.{number}", now, skips.pop())
            yield from attention(place, number)
        for number in range(len(up.upsamplers or ())):
            yield read(f"{place}.upsamplers.{number}", now)


def factors_of(
    blocks: Iterable[Block], ranges: Mapping[str, float], *, groups: int, limit: float = LIMIT
) -> dict[int, float]:
    """A power of two by stream, at most 1, that brings the stream's largest value to the limit.

    Args:
        blocks: of `blocks_of`.
        ranges: largest magnitude of each module's output, by name.
        groups: of the norms.
        limit: of the products.
    """
    same = {0: 0}
    largest = {0: ranges["conv_in"]}

    def first(stream: int) -> int:
        return stream if same[stream] == stream else first(same[stream])

    for block in blocks:
        same.setdefault(block.writes, block.writes)
        for part in ("", ".conv2", ".conv_shortcut", ".to_out.0"):  # a block has some of them
            value = ranges.get(f"{block.name}{part}", 0.0)
            largest[block.writes] = max(largest.get(block.writes, 0.0), value)
        channels = sum(half.channels for half in block.reads)
        if block.reads[0].channels % (channels // groups):  # a group holds channels of both halves
            same[first(block.reads[1].stream)] = first(block.reads[0].stream)
    together: dict[int, float] = {}
    for stream, value in largest.items():
        together[first(stream)] = max(together.get(first(stream), 0.0), value)
    return {stream: 2.0 ** -max(0, math.ceil(math.log2(together[first(stream)] / limit))) for stream in largest}


def multiply(unet: diffusers.UNet2DModel, blocks: Iterable[Block], factors: Mapping[int, float]) -> None:
    """Multiply the weights so that each stream has its factor; the norms' eps stays as it is."""
    import torch

    def scale(module: torch.nn.Module, factor: float) -> None:
        for parameter in (module.weight, module.bias):
            parameter.mul_(factor)

    with torch.no_grad():
        scale(unet.conv_in, factors[0])
        for block in blocks:
            module, own = unet.get_submodule(block.name), factors[block.writes]
            if hasattr(module, "to_out"):
                scale(module.to_out[0], own)
                continue
            scale(module.conv1, factors[0])
            scale(module.conv2, own)
            if module.conv_shortcut is not None:
                columns = [half.channels for half in block.reads]
                for half, piece in zip(block.reads, module.conv_shortcut.weight.split(columns, dim=1), strict=True):
                    piece.mul_(own / factors[half.stream])
                module.conv_shortcut.bias.mul_(own)


def with_factors(
    unet: diffusers.UNet2DModel, ranges: Mapping[str, float], *, limit: float = LIMIT
) -> diffusers.UNet2DModel:
    """A model that computes the same with smaller sums.

    Args:
        unet: of residual blocks with scale and shift, whose sizes change in residual blocks; its weights are changed.
        ranges: largest magnitude of each module's output, by name.
        limit: of sums.
    """
    blocks = list(blocks_of(unet))
    factors = factors_of(blocks, ranges, groups=unet.config.norm_num_groups, limit=limit)
    multiply(unet, blocks, factors)
    changed = type(unet).from_config({**unet.config, "norm_eps": unet.config.norm_eps * factors[0] ** 2})
    changed.load_state_dict(unet.state_dict())
    return changed.eval()
