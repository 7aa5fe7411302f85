"""The training form: forward as numerics, gradients as the straight-through estimator says."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from dq_deploy import numerics
from dq_deploy.errors import OptionError
from dq_deploy.methods import options_for
from dq_deploy.methods.prepare.initial_layers import initial_layers
from dq_deploy.methods.prepare.preparation import PreparedLayer, prepare
from dq_deploy.methods.ranges.step_ranges import collect_ranges
from dq_deploy.methods.training.trainable import WEIGHTS, CentredCodes, TrainableLayer
from dq_deploy.record import Layer
from dq_deploy.simulation.fake_quant import StepContext
from tests.tiny import tiny_denoiser

STEPS = 4
LAYERS = (
    "conv_in",
    "down_blocks.0.downsamplers.0.conv",
    "up_blocks.1.resnets.0.conv_shortcut",
    "mid_block.attentions.0.to_q",
    "mid_block.resnets.0.time_emb_proj",
)


@functools.cache
def start(**changes: object) -> tuple[dict[str, PreparedLayer], dict[str, Layer]]:
    options = options_for(steps=STEPS, weight_bits=4, activation_bits=4, split_skips=True, **changes)  # type: ignore[arg-type]
    prepared = prepare(tiny_denoiser(), options, dilation_bound="asymmetric")
    rng = np.random.default_rng(0)
    step = np.arange(16) % STEPS
    inputs = {
        "sample": rng.standard_normal((16, 1, 8, 8)).astype(np.float32),
        "timestep": (step * 250).astype(np.float32),
        "step": step,
    }
    ranges = collect_ranges(prepared, inputs, steps=STEPS, draw_values=True)
    return dict(prepared.layers), initial_layers(prepared, ranges, options, search=True)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_forward_equals_numerics_after_training_moved_everything(name: str, symmetric: bool) -> None:
    prepared, layers = start(symmetric_activations=symmetric)
    context = StepContext()
    context.step = torch.tensor([3, 0, 2, 1, 1])
    layer = TrainableLayer(prepared[name], layers[name], 0.5, context)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    shape = list(prepared[name].site.input_shape)
    x = torch.randn([5, *shape[1:]], generator=generator)
    trained = layer.harvest()
    expected = numerics.integer_layer(trained, x.numpy(), context.step.numpy())
    got = layer(x).detach().numpy()
    np.testing.assert_allclose(got, expected.output, rtol=1e-5, atol=1e-5 * np.abs(expected.output).max())
    zero = np.concatenate([part.zero_point for part in trained.parts])
    if symmetric:
        assert (zero == 0).all()
    else:
        assert zero.min() >= trained.q_min
        assert zero.max() <= trained.q_max


def test_gradients_pass_where_codes_are_not_clamped() -> None:
    x = torch.tensor([[-9.0, 0.2, 1.3, 9.0]], requires_grad=True)
    m = torch.tensor([[2.0]], requires_grad=True).expand(1, 4)
    z = torch.tensor([[3.0]], requires_grad=True)
    codes = CentredCodes.apply(x, m, z, 0, 7)  # type: ignore[no-untyped-call]
    assert codes.tolist() == [[-3.0, 0.0, 3.0, 4.0]]
    weight = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    grad_x, grad_m, grad_z = torch.autograd.grad((codes * weight).sum(), (x, m, z))
    assert grad_x.tolist() == [[0.0, 20.0, 200.0, 0.0]]
    assert grad_m[0].tolist() == pytest.approx([0.0, 2.0, 130.0, 0.0])
    assert grad_z.item() == -1001.0


def test_each_step_trains_only_its_own_entry() -> None:
    prepared, layers = start()
    context = StepContext()
    context.step = torch.tensor([2, 2, 0])
    layer = TrainableLayer(prepared["conv_in"], layers["conv_in"], 1.0, context)
    layer(torch.randn(3, 1, 8, 8)).square().sum().backward()
    grad = layer.parts[0].g.grad
    assert isinstance(grad, torch.Tensor)
    assert (grad[[1, 3]] == 0).all()
    assert (grad[[0, 2]] != 0).all()


def test_weight_gradients_reach_codes_scales_and_bias() -> None:
    prepared, layers = start()
    context = StepContext()
    context.step = torch.tensor([0])
    name = "mid_block.attentions.0.to_q"
    layer = TrainableLayer(prepared[name], layers[name], 1.0, context)
    layer(torch.randn(1, 16, 16)).square().sum().backward()
    for parameter in (layer.parts[0].v, layer.parts[0].a, layer.e):
        assert isinstance(parameter, torch.nn.Parameter)
        assert parameter.grad is not None
        assert bool(parameter.grad.abs().sum() > 0)


def perturbed(layer: TrainableLayer, size: float = 0.3) -> TrainableLayer:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return layer


def in_training(name: str, weights: str, **changes: object) -> TrainableLayer:
    prepared, layers = start(**changes)
    context = StepContext()
    context.step = torch.tensor([3, 0, 2, 1, 1])
    return TrainableLayer(prepared[name], layers[name], 0.5, context, weights=weights)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_asymmetric_weights_keep_their_zero_points_and_equal_numerics(weights: str) -> None:
    name = "up_blocks.1.resnets.0.conv_shortcut"
    layer = perturbed(in_training(name, weights, asymmetric_weights=True))
    if weights == "adaround":  # decided, so that soft and hard rounding are the same
        for part in layer.parts:
            part.rounding.data = 9 * part.rounding.data.sign()  # type: ignore[union-attr, operator]
    trained = layer.harvest()
    assert any(part.w_zero_point.any() for part in trained.parts)
    x = torch.randn([5, *layer.prepared.site.input_shape[1:]], generator=torch.Generator().manual_seed(1))
    expected = numerics.integer_layer(trained, x.numpy(), layer.context.step.numpy()).output
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("asymmetric", [False, True])
def test_adaround_starts_at_the_float_weights_and_ends_at_floor_or_ceiling(asymmetric: bool) -> None:
    layer = in_training("conv_in", "adaround", asymmetric_weights=asymmetric)
    part = layer.parts[0]
    scale = part.weight_start.reshape(-1, 1, 1, 1)  # type: ignore[union-attr, operator]
    ratio = torch.from_numpy(layer.prepared.weight) / scale
    clamped = ratio.clamp(part.low, part.high)  # type: ignore[arg-type]
    torch.testing.assert_close(part.q_weight().detach(), clamped, rtol=0, atol=1e-4)  # type: ignore[operator]
    perturbed(layer, size=3.0)
    harvested = torch.from_numpy(layer.harvest().parts[0].q_weight(0).astype(np.float32))
    either = (harvested == ratio.floor()) | (harvested == ratio.floor() + 1)
    assert bool((either | (clamped != ratio)).all())
    assert bool((harvested == ratio.floor()).any())
    assert bool((harvested == ratio.floor() + 1).any())


@pytest.mark.parametrize("weights", ["straight-through", "fixed"])
def test_a_start_that_was_rounded_otherwise_stays_what_it_is(weights: str) -> None:
    prepared, layers = start()
    was = layers["conv_in"]
    part = was.parts[0]
    moved = np.clip(part.w_code + np.random.default_rng(0).integers(-1, 2, part.w_code.shape), -8, 7).astype(np.int8)
    given = replace(was, parts=(replace(part, w_code=moved),), bias=was.bias + 1, out_scale=None, out_zero_point=None)
    harvested = TrainableLayer(prepared["conv_in"], given, 1.0, StepContext(), weights=weights).harvest()
    np.testing.assert_array_equal(harvested.parts[0].w_code, moved)
    np.testing.assert_array_equal(harvested.bias, given.bias)


def test_steps_of_a_group_share_one_trained_entry() -> None:
    prepared, layers = start(step_groups=2)
    groups = np.array([0, 0, 1, 1])
    context = StepContext()
    layer = perturbed(TrainableLayer(prepared["conv_in"], layers["conv_in"], 1.0, context, groups=groups))
    assert len(layer.parts[0].g) == 2  # type: ignore[arg-type]
    part = layer.harvest().parts[0]
    for table in (part.scale, part.zero_point):
        assert len(table) == STEPS
        np.testing.assert_array_equal(table, table[[0, 0, 2, 2]])
    assert part.scale[0] != part.scale[2]


def test_values_without_a_rate_are_frozen() -> None:
    layer = in_training("conv_in", "adaround")
    groups = layer.parameter_groups({"rounding": 0.1, "scale": 0.2, "weight": 0.3, "bias": 0.0})
    assert [group["lr"] for group in groups] == [0.1, 0.2]
    trained = {name.split(".")[-1] for name, p in layer.named_parameters() if p.requires_grad}
    assert trained == {"rounding", "g"}


def test_dropped_activation_quantization_passes_values_and_gradients_as_they_are() -> None:
    x = torch.tensor([[-9.0, 0.2, 1.3, 9.0]], requires_grad=True)
    m, z = torch.tensor([[2.0]]).expand(1, 4), torch.tensor([[3.0]])
    is_float = torch.tensor([[True, True, False, False]])
    codes = CentredCodes.apply(x, m, z, 0, 7, is_float)  # type: ignore[no-untyped-call]
    assert codes[0].tolist() == pytest.approx([-18.0, 0.4, 3.0, 4.0])
    assert torch.autograd.grad(codes.sum(), x)[0].tolist() == [[2.0, 2.0, 2.0, 0.0]]


def test_with_every_value_dropped_the_activations_are_float() -> None:
    layer = in_training("conv_in", "adaround")
    layer.drop = 1.0
    x = torch.randn([5, *layer.prepared.site.input_shape[1:]])
    part = layer.parts[0]
    weight = part.q_weight() * part.weight_scale().reshape(-1, 1, 1, 1)  # type: ignore[operator]
    pre = part.pre.reshape(1, -1, 1, 1)  # type: ignore[union-attr, operator]
    expected = torch.nn.functional.conv2d(x * pre, weight, layer.bias(), padding=1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_a_layer_of_several_weight_sets_is_refused() -> None:
    prepared, layers = start()
    part = layers["conv_in"].parts[0]
    twice = {name: np.repeat(getattr(part, name), 2, axis=0) for name in ("w_code", "w_zero_point", "weight_scale")}
    doubled = replace(layers["conv_in"], parts=(replace(part, **twice),))
    with pytest.raises(OptionError, match="conv_in holds 2 weight sets, expected one"):
        TrainableLayer(prepared["conv_in"], doubled, 1.0, StepContext())
