"""The blocks of a denoiser: what is reconstructed as one, and what stands in the middle."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from dq_deploy.models.capture.facts import Facts
from dq_deploy.models.layers import Block

WHOLE = frozenset(("ResnetBlock2D", "BasicTransformerBlock"))
"""Classes of diffusers that are a block wherever they stand, with all that is in them."""

EMBEDDINGS = frozenset(("TimestepEmbedding", "PixArtAlphaTextProjection", "Attention"))
"""Classes that are a block where they stand in no other."""


def blocks_of(module: torch.nn.Module, facts: Facts) -> list[Block]:
    """Blocks in execution order: every layer is in one.

    A block is a residual or transformer block; else a module that its class says not to split
    (`_no_split_modules`), or one of several in a ModuleList, where it has no such blocks inside; else an embedding or
    attention. It runs once in a step. Every other layer is a block of its own, as is the only layer of a module.
    """
    sites = [site.name for site in facts.sites]
    owners: dict[str, str] = {}
    for path in _paths(module, facts):
        inside = [name for name in sites if name.startswith(f"{path}.")]
        if len(inside) > 1:
            owners.update(dict.fromkeys(inside, path))
    members: dict[str, list[str]] = {}
    for name in sites:
        members.setdefault(owners.get(name, name), []).append(name)
    return [Block(name=name, layers=tuple(layers)) for name, layers in members.items()]


def _paths(module: torch.nn.Module, facts: Facts) -> Iterable[str]:
    """Paths of the blocks, none inside another."""
    unsplit = set(getattr(module, "_no_split_modules", None) or ())

    def walk(path: str, child: torch.nn.Module, listed: bool) -> Iterable[str]:
        kind = type(child).__name__
        once = facts.runs.get(path) == 1
        if once and (kind in WHOLE or kind in EMBEDDINGS):
            yield path
            return
        if once and (kind in unsplit or listed):
            within = {type(one).__name__ for one in child.modules() if one is not child}
            if not within & (WHOLE | unsplit):
                yield path
                return
        for name, one in child.named_children():
            inner = f"{path}.{name}" if path else name
            yield from walk(inner, one, isinstance(child, torch.nn.ModuleList))

    return walk("", module, False)


def middle_of(module: torch.nn.Module, facts: Facts) -> str:
    """Path of the middle attention of a UNet; else of the block in which half of the work is done."""
    middle = getattr(module, "mid_block", None)
    if isinstance(middle, torch.nn.Module):
        attentions = getattr(middle, "attentions", None) or ()
        found = [i for i, child in enumerate(attentions) if child is not None]
        return f"mid_block.attentions.{found[0]}" if found else "mid_block"
    if "up_blocks.0" in facts.runs:
        return "up_blocks.0"
    blocks = blocks_of(module, facts)
    work = {block.name: sum(facts.macs.layers[name] for name in block.layers) for block in blocks}
    several = [block.name for block in blocks if len(block.layers) > 1] or list(work)
    left = sum(work[name] for name in several) / 2
    for name in several:
        left -= work[name]
        if left <= 0:
            return name
    return several[-1]
