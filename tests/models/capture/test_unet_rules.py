"""What the graph of a UNet says is what its blocks' code says, read by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from dq_deploy import models
from tests.tiny import tiny_conditional_config, tiny_config

CONFIGS = {
    "unconditional": tiny_config(),
    "residual samplers": tiny_config(
        down_block_types=["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
        up_block_types=["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
    ),
    "stable diffusion 1": tiny_conditional_config(),
    "sdxl": tiny_conditional_config(sdxl=True),
    "no middle block": tiny_conditional_config(mid_block_type=None),
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CONFIGS[request.param]


@pytest.fixture
def module(config: dict[str, Any]) -> torch.nn.Module:
    return models.build_denoiser(models.family_of(config), config, device="meta")


def folds_by_hand(module: torch.nn.Module) -> set[tuple[str, str, tuple[str, ...]]]:
    found = set()
    for name, child in module.named_modules():
        if isinstance(child, Transformer2DModel):
            found.add((f"{name}.norm", "group_norm", (f"{name}.proj_in",)))
        elif isinstance(child, BasicTransformerBlock):
            own, cross, feed = f"{name}.attn1", f"{name}.attn2", f"{name}.ff.net"
            found |= {
                (f"{name}.norm1", "layer_norm", (f"{own}.to_q", f"{own}.to_k", f"{own}.to_v")),
                (f"{name}.norm2", "layer_norm", (f"{cross}.to_q",)),
                (f"{name}.norm3", "layer_norm", (f"{feed}.0.proj",)),
                (f"{feed}.0.proj", "value_rows", (f"{feed}.2",)),
            }
        elif isinstance(child, Attention):
            found.add((f"{name}.to_v", "linear_rows", (f"{name}.to_out.0",)))
            if child.group_norm is not None:
                readers = (f"{name}.to_q", f"{name}.to_k", f"{name}.to_v")
                found.add((f"{name}.group_norm", "group_norm", readers))
    return found


def splits_by_hand(module: Any) -> dict[str, int]:
    splits: dict[str, int] = {}
    before = module.down_blocks[-1].resnets[-1] if module.mid_block is None else module.mid_block.resnets[-1]
    for i, block in enumerate(module.up_blocks):
        for j, resnet in enumerate(block.resnets):
            splits[f"up_blocks.{i}.resnets.{j}.conv1"] = before.out_channels
            splits[f"up_blocks.{i}.resnets.{j}.conv_shortcut"] = before.out_channels
            before = resnet
    return splits


def test_folds_and_skip_splits_are_those_of_the_blocks(config: dict[str, Any], module: torch.nn.Module) -> None:
    call = models.default_call(config)
    found = [(site.producer, site.kind, site.consumers) for site in models.fold_sites(module, call)]
    assert len(found) == len(set(found))
    assert set(found) == folds_by_hand(module)
    assert models.skip_splits(module, call) == splits_by_hand(module)
    queries = [name for name, _ in module.named_modules() if name.endswith("attn1.to_q") or name.endswith("s.0.to_q")]
    shared = models.shared_inputs(module, call)
    for query in queries:
        assert any({query, query[:-1] + "k", query[:-1] + "v"} <= set(unit) for unit in shared)


def test_roles_are_those_of_the_names(config: dict[str, Any], module: torch.nn.Module) -> None:
    for site in models.quantizable_layers(module, models.default_call(config)):
        expected = {"conv_in": "first", "conv_out": "last"}.get(site.name, "general")
        if site.name.startswith(("time_embedding.", "add_embedding.")):
            expected = "embedding"
        elif site.name.endswith("time_emb_proj"):
            expected = "modulation"
        elif site.name.endswith(("attn2.to_k", "attn2.to_v")):
            expected = "condition"
        assert (site.name, site.role, site.float_reason) == (site.name, expected, "")


def test_reasons_say_what_stands_in_front(config: dict[str, Any], module: torch.nn.Module) -> None:
    words = models.fold_refusals(module, models.default_call(config))
    for name, reason in words.items():
        if name.endswith(("conv1", "conv2")) or name == "conv_out":
            assert reason == "SiLU stands between the norm and the convolution", name
        elif name.endswith(("attn2.to_k", "attn2.to_v")):
            assert reason == "input is the text embedding, there is no producer in the model"
        elif name.endswith("time_emb_proj"):
            assert reason == "SiLU stands between, and the time embedding has several consumers"
        elif name.startswith("up_blocks") and name.endswith("conv_shortcut"):
            assert reason == "input is a concatenation of several tensors, not one producer"
    assert words["conv_in"] == "input is the sample itself, there is no producer"
    assert words["time_embedding.linear_1"].startswith("input is the sinusoidal embedding of the timestep")
    assert words["time_embedding.linear_2"] == "SiLU stands between the two layers"
