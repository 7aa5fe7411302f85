"""Learned equivalent scaling: the float function stays, and the output error falls where channels differ."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dq_deploy.errors import NonFiniteError
from dq_deploy.methods import SharedOptions, options_for
from dq_deploy.methods.layer_bits import LayerBits
from dq_deploy.methods.prepare.preparation import Prepared, PreparedLayer, prepare, with_equivalent_scales
from dq_deploy.methods.progress import Progress
from dq_deploy.methods.scaling.equivalent_scaling import (
    LayerRows,
    LearnedScales,
    ScaledLayer,
    checked_scale,
    collect_rows,
    learn_equivalent_scales,
    learn_layer,
)
from dq_deploy.models import LayerSite, call_denoiser, example_inputs
from dq_deploy.numerics import channel_axis_of
from tests.tiny import tiny_conditional_denoiser, tiny_denoiser

FAMILIES = (tiny_denoiser, tiny_conditional_denoiser)
STEPS = 4


def options(**changes: Any) -> SharedOptions:
    values = {"method": "dmq", "steps": STEPS, "activation_bits": 4, "batch": 8, "scaling_iterations": 60}
    return options_for(**{**values, "lr_equivalent": 0.05, **changes})


def calibration(denoiser: Any, count: int) -> dict[str, Any]:
    step = np.arange(count) % STEPS
    drawn = example_inputs(denoiser.call, count, 0)
    return {**drawn, "timestep": (step * 250).astype(np.float32), "step": step}


def linear(weight: Any, widths: tuple[int, ...] = ()) -> PreparedLayer:
    n_out, n_in = weight.shape
    site = LayerSite(
        name="layer",
        kind="linear",
        in_channels=n_in,
        out_channels=n_out,
        kernel=(),
        stride=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
        groups=1,
        macs=n_in * n_out,
        input_shape=(1, n_in),
        output_shape=(1, n_out),
    )
    bits = LayerBits(name="layer", weight_bits=4, activation_bits=4, reason="general")
    return PreparedLayer(
        site=site, bits=bits, widths=widths or (n_in,), pre=np.ones(n_in, np.float32), weight=weight, bias=None, fold=""
    )


def outlier_rows(channels: int = 8, count: int = 64) -> LayerRows:
    """Rows whose first channel is forty times as large as the others."""
    rows = torch.randn(count, 4, channels, 1, generator=torch.Generator().manual_seed(0))
    rows[:, :, 0] *= 40
    step = torch.arange(count) % STEPS
    ends = [end.reshape(1, -1).expand(STEPS, -1) for end in (rows.amin((0, 1, 3)), rows.amax((0, 1, 3)))]
    return LayerRows(rows=rows, step=step, group=step, low=ends[0], high=ends[1])


@pytest.mark.parametrize("widths", [(), (3, 5)])
def test_an_outlier_channel_is_scaled_down_and_the_output_error_falls(widths: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    weight[:, 0] *= 0.05
    layer = linear(weight, widths)
    factor, before, after = learn_layer(layer, outlier_rows(), options(), steps=STEPS, seed=0)
    assert after < 0.6 * before
    assert factor[0] == factor.max() > 2
    assert (factor > 0).all()


def test_a_layer_that_gains_nothing_keeps_ones() -> None:
    weight = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    factor, before, after = learn_layer(linear(weight), outlier_rows(), options(lr_equivalent=0), steps=STEPS, seed=0)
    assert (factor == 1).all()
    assert before == after


def test_the_loss_follows_the_ranges_of_both_quantizers() -> None:
    weight = np.array([[1.0, -2.1], [0.45, 4.2]], np.float32)
    rows = torch.tensor([[[[1.0], [3.0]]], [[[-2.0], [0.3]]]])
    zero = torch.zeros(2, dtype=torch.int64)
    data = LayerRows(rows=rows, step=zero, group=zero, low=torch.tensor([[-2.0, 0.3]]), high=torch.tensor([[1.0, 3.0]]))
    scaled = ScaledLayer(linear(weight), data, options())
    g = np.array([2.0, 0.5])
    x, w = rows[:, 0, :, 0].numpy() / g, weight * g
    s = (6.0 + 1.0) / 15  # x / g spans [-1, 6]
    z = np.rint(1.0 / s)
    codes = np.clip(np.rint(x / s), -z, 15 - z)
    low, high = np.minimum(w.min(axis=1, keepdims=True), 0), np.maximum(w.max(axis=1, keepdims=True), 0)
    s_w = (high - low) / 15
    z_w = np.rint(-8 - low / s_w)
    q = np.clip(np.rint(w / s_w), -8 - z_w, 7 - z_w) * s_w
    target = rows[:, 0, :, 0].numpy() @ weight.T
    expected = ((codes * s @ q.T - target) ** 2).mean(axis=1) / (target**2).mean()
    got = scaled.losses(torch.from_numpy(g.astype(np.float32)), torch.arange(2))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("make", FAMILIES)
def test_rows_through_the_weight_are_outputs_of_the_float_layer(make: Any) -> None:
    denoiser = make()
    chosen = options()
    prepared = prepare(denoiser, chosen)
    inputs = calibration(denoiser, 8)
    names = list(prepared.layers)
    found = collect_rows(prepared, dict.fromkeys(names, 0), inputs, np.arange(8), chosen, steps=STEPS, batch=8)
    outputs: dict[str, Any] = {}
    for name in names:
        module = prepared.module.get_submodule(name)
        module.register_forward_hook(lambda m, a, y, name=name: outputs.__setitem__(name, (a[0], y - 0)))
    with torch.no_grad():
        call_denoiser(prepared.module, {k: torch.from_numpy(v) for k, v in inputs.items() if k != "step"})
    for name, data in found.items():
        layer = prepared.layers[name]
        x, y = outputs[name]
        bias = 0 if layer.bias is None else torch.from_numpy(layer.bias)
        product = ScaledLayer(layer, data, chosen).target + bias
        rows = y.movedim(channel_axis_of(layer.site.kind, y.ndim), -1).reshape(
            len(y), -1, y.shape[1] if y.ndim == 4 else y.shape[-1]
        )
        nearest = torch.cdist(product, rows, compute_mode="donot_use_mm_for_euclid_dist").amin(2)
        assert float(nearest.max()) < 1e-5 * max(1.0, float(y.abs().max())), name
        assert float(data.low.min()) == float(x.min())
        assert float(data.high.max()) == float(x.max())


@pytest.mark.parametrize("make", FAMILIES)
def test_the_scaled_layer_is_the_same_float_function(make: Any) -> None:
    denoiser = make()
    prepared = prepare(denoiser, options())
    rng = np.random.default_rng(0)
    scales = {name: np.exp(rng.standard_normal(layer.site.in_channels)) for name, layer in prepared.layers.items()}
    for name, layer in with_equivalent_scales(prepared, scales).layers.items():
        before = prepared.layers[name]
        tail = (1,) * (layer.weight.ndim - 2)
        assert layer.fold.startswith("multiplied at run time")
        np.testing.assert_allclose(layer.pre, 1 / scales[name], rtol=1e-6)
        np.testing.assert_allclose(layer.weight * layer.pre.reshape(1, -1, *tail), before.weight, rtol=1e-6)


def test_little_memory_means_fewer_layers_at_a_time_and_the_same_names() -> None:
    denoiser = tiny_denoiser()
    chosen = options(scaling_iterations=1, memory_gib=0.001)
    prepared = prepare(denoiser, chosen)
    some = dict(list(prepared.layers.items())[:6])
    reports: list[Progress] = []
    learned = learn_equivalent_scales(
        Prepared(module=prepared.module, call=prepared.call, layers=some, bits=prepared.bits),
        calibration(denoiser, 8),
        chosen,
        steps=STEPS,
        batch=8,
        progress=reports.append,
    )
    # the one channel of conv_in is left out
    assert set(learned.factors) == set(some) - {"conv_in"}
    assert [report.done for report in reports] == list(range(1, len(some)))


def test_a_run_goes_on_behind_the_layers_that_are_learned() -> None:
    denoiser, chosen = tiny_denoiser(), options(scaling_iterations=2)
    prepared = prepare(denoiser, chosen)
    some = Prepared(
        module=prepared.module, call=prepared.call, layers=dict(list(prepared.layers.items())[:5]), bits=prepared.bits
    )
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def learn(known: LearnedScales | None = None) -> LearnedScales:
        return learn_equivalent_scales(
            some,
            calibration(denoiser, 8),
            chosen,
            steps=STEPS,
            batch=8,
            progress=lambda report: None,
            known=known,
            keep=lambda learned: kept.append((dict(learned.factors), copy.deepcopy(learned.history))),
        )

    whole = learn()
    assert [len(factors) for factors, _ in kept] == [1, 2, 3, 4]
    factors, history = kept[1]
    again = learn(LearnedScales(factors=factors, history=history))
    assert again.history == whole.history
    assert all(np.array_equal(again.factors[name], value) for name, value in whole.factors.items())


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf, np.nan, 2.0**-70])
def test_a_factor_that_is_not_positive_or_not_finite_is_refused_with_the_layers_name(bad: float) -> None:
    with pytest.raises(NonFiniteError, match=r"layer mid\.conv: the learned scale of input channel 1"):
        checked_scale("mid.conv", np.array([1.0, bad]))


def test_a_loss_that_is_not_finite_names_the_layer() -> None:
    data = outlier_rows()
    broken = replace(data, rows=torch.full_like(data.rows, torch.nan))
    weight = np.ones((4, 8), np.float32)
    with pytest.raises(NonFiniteError, match="layer layer: the loss"):
        learn_layer(linear(weight), broken, options(), steps=STEPS, seed=0)
