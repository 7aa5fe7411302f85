"""Weight dilation: the formula against brute force, and what it may never do."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_deploy.errors import OptionError
from dq_deploy.methods import options_for
from dq_deploy.methods.prepare.dilation import LARGEST, dilation_of, scale_input_channels
from dq_deploy.methods.prepare.preparation import prepare
from dq_deploy.models import Denoiser
from tests.tiny import tiny_denoiser


def brute_force(weight: np.ndarray, bound: str) -> list[float]:
    factors = []
    for k in range(weight.shape[1]):
        ratios = []
        for n in range(weight.shape[0]):
            top, bottom = float(weight[n].max()), float(weight[n].min())
            widest = float(np.abs(weight[n]).max())
            for w in weight[n, k].reshape(-1):
                if w == 0:
                    continue
                if bound == "symmetric":
                    ratios.append(widest / abs(float(w)))
                else:
                    ratios.append((top if w > 0 else bottom) / float(w))
        factors.append(min(ratios, default=1.0))
    return [min(d, LARGEST) for d in factors]


@given(st.integers(0, 10_000), st.sampled_from([(3, 4), (5, 2, 3, 3), (1, 6), (8, 1, 1, 1)]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_formula_equals_brute_force(seed: int, shape: tuple[int, ...], symmetric: bool) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal(shape) * (rng.random(shape) > 0.2)).astype(np.float32)
    bound = "symmetric" if symmetric else "asymmetric"
    got = dilation_of(weight, bound=bound)
    assert got == pytest.approx(brute_force(weight, bound), rel=1e-12)
    assert (got >= 1).all()


def test_a_saturated_channel_keeps_one_and_a_zero_channel_gets_one() -> None:
    weight = np.array([[1.0, 0.25, 0.0], [-0.5, 0.1, 0.0]], np.float32)
    assert dilation_of(weight).tolist() == pytest.approx([1.0, 1.0, 1.0])  # 0.1 is the top of row 1
    assert dilation_of(weight, bound="symmetric").tolist() == pytest.approx([1.0, 4.0, 1.0])


@pytest.mark.parametrize("bound", ["asymmetric", "symmetric"])
def test_dilated_weights_stay_inside_their_channel_range(bound: str) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 40, 3, 3)).astype(np.float32)
    d = dilation_of(weight, bound=bound)
    assert (d > 1).any()
    rows = scale_input_channels(weight, d).reshape(6, -1)
    before = weight.reshape(6, -1)
    if bound == "asymmetric":
        np.testing.assert_allclose(rows.max(1), before.max(1), rtol=1e-6)
        np.testing.assert_allclose(rows.min(1), before.min(1), rtol=1e-6)
    else:
        np.testing.assert_allclose(np.abs(rows).max(1), np.abs(before).max(1), rtol=1e-6)


def test_groups_have_their_own_input_channels() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 2, 3, 3)).astype(np.float32)
    whole = dilation_of(weight, groups=3)
    assert len(whole) == 6
    for g in range(3):
        np.testing.assert_array_equal(whole[2 * g : 2 * g + 2], dilation_of(weight[2 * g : 2 * g + 2]))


def test_an_unknown_bound_is_refused() -> None:
    with pytest.raises(OptionError, match="expected asymmetric or symmetric"):
        dilation_of(np.ones((2, 2), np.float32), bound="both")


def uneven_denoiser() -> Denoiser:
    """A tiny denoiser whose attention inputs differ in size, so that dilation is not one there."""
    denoiser = tiny_denoiser(seed=3)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in denoiser.module.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        if name.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")):
            parameter.data *= torch.linspace(0.05, 1, parameter.shape[1])
    return denoiser


def test_folds_leave_the_float_function_unchanged() -> None:
    denoiser = uneven_denoiser()
    prepared = prepare(denoiser, options_for(steps=4), dilation_bound="asymmetric")
    folded = [layer for layer in prepared.layers.values() if layer.fold.startswith("folded")]
    assert len(folded) >= 4
    assert all((layer.pre == 1).all() for layer in folded)
    norm = "mid_block.attentions.0.group_norm.weight"
    before, after = denoiser.module.state_dict()[norm], prepared.module.state_dict()[norm]
    assert not torch.equal(before, after)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([0.0, 250.0, 750.0])
    with torch.no_grad():
        expected = denoiser.module(x, time, return_dict=False)[0]
        got = prepared.module(x, time, return_dict=False)[0]
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        undone = copy.deepcopy(prepared.module)
        for name, layer in prepared.layers.items():
            site = layer.site
            weight = scale_input_channels(layer.weight, layer.pre.astype(np.float64), site.groups)
            undone.get_submodule(name).weight.data = torch.from_numpy(weight)
        torch.testing.assert_close(undone(x, time, return_dict=False)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_fold_is_refused_where_a_consumer_stays_float() -> None:
    options = options_for(steps=4, keep=("mid_block.attentions.0.to_k",))
    prepared = prepare(uneven_denoiser(), options, dilation_bound="asymmetric")
    layer = prepared.layers["mid_block.attentions.0.to_q"]
    assert layer.fold.startswith("not folded into mid_block.attentions.0.group_norm")
    assert (layer.pre < 1).any()


def test_a_fold_is_refused_where_a_parameter_would_leave_the_normal_range() -> None:
    denoiser = uneven_denoiser()
    denoiser.module.get_submodule("mid_block.attentions.0.group_norm").weight.data[0] = 1.3e-38
    layer = prepare(denoiser, options_for(steps=4), dilation_bound="asymmetric").layers["mid_block.attentions.0.to_q"]
    assert "normal range" in layer.fold


def test_a_fold_into_quantized_value_rows_leaves_their_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    from dq_deploy.methods.ranges.scales import search_weight_scale, weight_codes

    denoiser = uneven_denoiser()
    name = "mid_block.attentions.0.to_v"
    with_rows = prepare(denoiser, options_for(steps=4), dilation_bound="asymmetric").layers[name]
    kept = options_for(steps=4, keep=("mid_block.attentions.0.to_out.0", "time_embedding.*"))
    without = prepare(denoiser, kept, dilation_bound="asymmetric").layers[name]
    codes = []
    for layer in (with_rows, without):
        scale = search_weight_scale(layer.weight, 4)
        codes.append(weight_codes(layer.weight, scale, 4))
    assert not np.array_equal(with_rows.weight, without.weight)
    np.testing.assert_array_equal(codes[0], codes[1])
