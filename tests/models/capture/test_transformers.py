"""What the graph of an image transformer says holds when it runs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from dq_deploy import models
from dq_deploy.methods.prepare.preparation import _apply_fold, sharing_copy
from dq_deploy.models import FoldSite
from dq_deploy.record import Call
from tests.models.capture.small import DIT, FLUX, PIXART, SD3, small

SAME = 2e-6
NAMES = (DIT, PIXART, SD3, FLUX)


def roles(name: str) -> dict[str, str]:
    return {site.name: site.role for site in models.quantizable_layers(*small(name))}


def test_modulation_text_first_and_last_layers_are_found_by_what_they_depend_on() -> None:
    flux = roles(FLUX)
    block, single = "transformer_blocks.0", "single_transformer_blocks.0"
    modulation = [f"{block}.norm1.linear", f"{block}.norm1_context.linear", f"{single}.norm.linear", "norm_out.linear"]
    assert [name for name, role in flux.items() if role == "modulation"] == modulation
    assert {name for name, role in flux.items() if role == "embedding"} == {
        f"time_text_embed.{part}_embedder.linear_{i}" for part in ("timestep", "text") for i in (1, 2)
    }
    assert (flux["x_embedder"], flux["context_embedder"], flux["proj_out"]) == ("first", "condition", "last")
    assert flux[f"{block}.attn.add_k_proj"] == flux[f"{single}.proj_out"] == "general"
    pixart = roles(PIXART)
    text = [name for name, role in pixart.items() if role == "condition"]
    assert text == ["caption_projection.linear_1", "caption_projection.linear_2"] + [
        f"transformer_blocks.0.attn2.to_{what}" for what in "kv"
    ]
    assert pixart["adaln_single.linear"] == "modulation"
    assert roles(DIT)["proj_out_1"] == roles(SD3)["norm_out.linear"] == "modulation"


def test_layers_that_run_twice_stay_float() -> None:
    sites = {site.name: site for site in models.quantizable_layers(*small(DIT))}
    first = sites["transformer_blocks.0.norm1.emb.timestep_embedder.linear_1"]
    assert first.float_reason == "it runs 2 times in a step, and ranges are of one run"
    assert sites["transformer_blocks.0.attn1.to_q"].float_reason == ""


def test_a_single_blocks_output_layer_reads_attention_and_feed_forward_apart() -> None:
    module, call = small(FLUX)
    width = module.get_submodule("single_transformer_blocks.0.attn.to_v").out_features
    assert models.skip_splits(module, call) == {"single_transformer_blocks.0.proj_out": width}


def test_reasons_against_folds_name_modulation_and_joint_attention() -> None:
    words = models.fold_refusals(*small(SD3))
    block = "transformer_blocks.0"
    assert words[f"{block}.attn.to_q"].startswith("adaptive norm: scale and shift come from the time embedding")
    assert words[f"{block}.attn.to_out.0"].startswith("joint attention concatenates the values of two streams")
    assert words[f"{block}.ff.net.2"] == "GELU stands between the two layers"
    assert f"{block}.attn2.to_out.0" not in words  # its attention has one stream


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_has_a_fold_or_a_reason_and_a_block(name: str) -> None:
    module, call = small(name)
    sites = [site.name for site in models.quantizable_layers(module, call)]
    folded = [one for site in models.fold_sites(module, call) for one in site.consumers]
    assert Counter([*folded, *models.fold_refusals(module, call)]) == Counter(sites)
    blocks = models.blocks_of(module, call)
    assert [one for block in blocks for one in block.layers] == sites
    whole = {block.name for block in blocks if len(block.layers) > 4}
    assert whole == {name for name in whole if name.rpartition(".")[0].endswith("transformer_blocks")}
    assert models.middle_of(module, call) in whole


def changed_output(module: torch.nn.Module, call: Call, folds: list[FoldSite]) -> float:
    """Largest difference that folds by random factors make, as a share of the largest output, in float64."""
    sites = {site.name: site for site in models.quantizable_layers(module, call)}
    inputs = {name: torch.from_numpy(value) for name, value in models.example_inputs(call, 2, 0).items()}
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    folded = sharing_copy(module)
    for fold in folds:
        channels = sites[fold.consumers[0]].in_channels
        _apply_fold(folded, fold, np.random.default_rng(0).uniform(1, 4, channels), sites)
    with torch.no_grad():
        before = models.call_denoiser(sharing_copy(module).double(), inputs, call.constants)
        after = models.call_denoiser(folded.double(), inputs, call.constants)
    return float((after - before).abs().max() / before.abs().max())


@pytest.mark.parametrize("name", [DIT, PIXART, SD3])
def test_every_fold_leaves_the_function_unchanged(name: str) -> None:
    module, call = small(name, device="cpu")
    folds = models.fold_sites(module, call)
    assert folds
    assert changed_output(module, call, folds) < 20 * SAME
    producers = {fold.producer for fold in folds}
    if name == PIXART:  # one projection of the text feeds the keys and values of all blocks
        assert "caption_projection.linear_2" in producers
    values = folds[-1]
    assert values.producer.endswith(".to_v")
    wrong = FoldSite(producer=values.producer.replace("to_v", "to_k"), kind="linear_rows", consumers=values.consumers)
    assert changed_output(module, call, [wrong]) > 100 * SAME
