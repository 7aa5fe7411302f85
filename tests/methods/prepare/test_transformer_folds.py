"""Folds leave the float function as it was; folds that are not legal would not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dq_deploy.errors import OptionError
from dq_deploy.methods import options_for, quantize
from dq_deploy.methods.prepare.preparation import _apply_fold, divided_rows, prepare, sharing_copy
from dq_deploy.models import (
    Denoiser,
    FoldSite,
    LayerSite,
    call_denoiser,
    example_inputs,
    fold_sites,
    quantizable_layers,
)
from tests.tiny import tiny_conditional_denoiser

MODELS: dict[str, dict[str, Any]] = {
    "stable diffusion 1": {},
    "sdxl": {"sdxl": True},
}
KINDS = {"group_norm", "layer_norm", "linear_rows", "value_rows"}
SAME = 2e-6
"""Largest difference of the output, as a share of its largest value, that float32 rounding explains."""


@pytest.fixture(scope="module", params=MODELS)
def denoiser(request: pytest.FixtureRequest) -> Denoiser:
    return tiny_conditional_denoiser(**MODELS[request.param])


def output(module: torch.nn.Module, denoiser: Denoiser) -> torch.Tensor:
    """In float64, where the folds' own rounding to float32 is all that is left."""
    inputs = {k: torch.from_numpy(v).double() for k, v in example_inputs(denoiser.call, 2, 0).items()}
    with torch.no_grad():
        return call_denoiser(sharing_copy(module).double(), inputs)


def change(module: torch.nn.Module, denoiser: Denoiser) -> float:
    before = output(denoiser.module, denoiser)
    return float((output(module, denoiser) - before).abs().max() / before.abs().max())


def sites_of(denoiser: Denoiser) -> dict[str, LayerSite]:
    return {site.name: site for site in quantizable_layers(denoiser.module, denoiser.call)}


def factor_of(site: FoldSite, sites: dict[str, LayerSite], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 4, sites[site.consumers[0]].in_channels)


def fold(denoiser: Denoiser, *folds: FoldSite) -> torch.nn.Module:
    module, sites = sharing_copy(denoiser.module), sites_of(denoiser)
    for site in folds:
        _apply_fold(module, site, factor_of(site, sites), sites)
    return module


def weight(module: torch.nn.Module, name: str) -> np.ndarray:
    return np.asarray(module.get_submodule(name).weight.numpy())  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_fold_alone_keeps_the_function_and_changes_producer_and_consumers(denoiser: Denoiser, kind: str) -> None:
    found = [site for site in fold_sites(denoiser.module, denoiser.call) if site.kind == kind]
    assert found
    for site in found[:3]:
        module = fold(denoiser, site)
        assert change(module, denoiser) < SAME, site
        for name in (site.producer, *site.consumers):
            assert np.abs(weight(module, name) - weight(denoiser.module, name)).max() > 1e-3, name


def test_all_folds_together_keep_the_function_in_either_order(denoiser: Denoiser) -> None:
    found = fold_sites(denoiser.module, denoiser.call)
    assert {site.kind for site in found} == KINDS
    there, back = fold(denoiser, *found), fold(denoiser, *reversed(found))
    assert change(there, denoiser) < 20 * SAME
    assert change(back, denoiser) < 20 * SAME
    both = [site.producer for site in found if any(site.producer in other.consumers for other in found)]
    assert {name.rsplit(".", 1)[-1] for name in both} == {"to_v", "proj"}
    for name in both:
        np.testing.assert_allclose(weight(there, name), weight(back, name), rtol=3e-7)


def wrong_folds(name: str) -> dict[str, FoldSite]:
    """Folds at one transformer block that look like legal ones and are not."""
    own = f"{name}.attn1"
    return {
        "v left out": FoldSite(producer=f"{name}.norm1", kind="layer_norm", consumers=(f"{own}.to_q", f"{own}.to_k")),
        "rows of k": FoldSite(producer=f"{own}.to_k", kind="linear_rows", consumers=(f"{own}.to_out.0",)),
        "norm of another layer": FoldSite(producer=f"{name}.norm2", kind="layer_norm", consumers=(f"{own}.to_q",)),
    }


@pytest.mark.parametrize("case", ["v left out", "rows of k", "norm of another layer"])
def test_a_fold_that_is_not_legal_changes_the_function(denoiser: Denoiser, case: str) -> None:
    block = next(
        site.producer.removesuffix(".norm1")
        for site in fold_sites(denoiser.module, denoiser.call)
        if "norm1" in site.producer
    )
    assert change(fold(denoiser, wrong_folds(block)[case]), denoiser) > 100 * SAME


def test_the_gate_half_of_a_geglu_is_not_the_value_half(denoiser: Denoiser) -> None:
    site = next(site for site in fold_sites(denoiser.module, denoiser.call) if site.kind == "value_rows")
    factor = factor_of(site, sites_of(denoiser))
    right = fold(denoiser, site)
    half = len(factor)
    np.testing.assert_array_equal(
        weight(right, site.producer)[half:],
        weight(denoiser.module, site.producer)[half:],
    )
    wrong = fold(denoiser, site)
    producer = wrong.get_submodule(site.producer)
    for name in ("weight", "bias"):
        value = getattr(denoiser.module.get_submodule(site.producer), name).clone()
        value[half:] /= torch.from_numpy(factor.astype(np.float32)).reshape((-1,) + (1,) * (value.ndim - 1))
        setattr(producer, name, torch.nn.Parameter(value, requires_grad=False))
    assert change(right, denoiser) < SAME
    assert change(wrong, denoiser) > 100 * SAME


def test_silu_behind_a_norm_forbids_the_fold(denoiser: Denoiser) -> None:
    site = FoldSite(producer="mid_block.resnets.0.norm1", kind="group_norm", consumers=("mid_block.resnets.0.conv1",))
    assert change(fold(denoiser, site), denoiser) > 100 * SAME


def test_a_producer_of_another_width_is_refused() -> None:
    site = FoldSite(producer="a", kind="value_rows", consumers=("b",))
    with pytest.raises(OptionError, match="a gives 3 channels, expected 4 as b reads"):
        divided_rows(np.ones(6), np.ones(4), site)


def test_dilation_is_folded_where_it_may_be_and_the_given_model_stays_as_it_was(denoiser: Denoiser) -> None:
    before = {key: value.clone() for key, value in denoiser.module.state_dict().items()}
    prepared = prepare(denoiser, options_for(), dilation_bound="asymmetric")
    for key, value in denoiser.module.state_dict().items():
        assert torch.equal(value, before[key])
    assert change(prepared.module, denoiser) < 50 * SAME
    folded = {name for site in fold_sites(denoiser.module, denoiser.call) for name in site.consumers}
    for name, layer in prepared.layers.items():
        assert layer.fold.startswith("folded into") == (name in folded)
        assert (layer.pre == 1).all() or name not in folded
    changed = [key for key, value in prepared.module.state_dict().items() if not torch.equal(value, before[key])]
    assert {key.rsplit(".", 1)[0].rsplit(".", 1)[-1] for key in changed} >= {"norm2", "to_v", "proj"}


def test_without_dilation_every_weight_is_shared_with_the_given_model(denoiser: Denoiser) -> None:
    prepared = prepare(denoiser, options_for(method="minmax"))
    for key, value in prepared.module.state_dict().items():
        assert value.data_ptr() == denoiser.module.state_dict()[key].data_ptr(), key
    for name, layer in prepared.layers.items():
        assert np.shares_memory(layer.weight, weight(denoiser.module, name)), name


def test_a_consumer_that_stays_float_forbids_the_fold() -> None:
    denoiser = tiny_conditional_denoiser()
    prepared = prepare(denoiser, options_for(keep=("*.attn1.to_q",)), dilation_bound="asymmetric")
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_k"
    assert "to_q stays float and reads the same tensor" in prepared.layers[name].fold
    assert change(prepared.module, denoiser) < 50 * SAME


def test_dilatequant_trains_a_conditioned_model_block_by_block() -> None:
    denoiser = tiny_conditional_denoiser(sdxl=True)
    record = quantize(denoiser, steps=2, samples=2, iterations=1, batch=2)
    blocks = [entry["block"] for entry in record.provenance["history"] if "block" in entry]
    assert "mid_block.attentions.0.transformer_blocks.1" in blocks
    assert any(layer.fold.startswith("folded into") for layer in record.layers.values())
