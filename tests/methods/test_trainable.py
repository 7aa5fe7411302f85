"""The training form: forward as numerics, gradients as the straight-through estimator says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dq_deploy import numerics
from dq_deploy.methods import QuantizeOptions
from dq_deploy.methods.fake_quant import StepContext
from dq_deploy.methods.minmax import initial_layers
from dq_deploy.methods.preparation import PreparedLayer, prepare
from dq_deploy.methods.ranges import collect_ranges
from dq_deploy.methods.trainable import CentredCodes, TrainableLayer
from dq_deploy.record import Layer
from tests.tiny import tiny_denoiser

STEPS = 4
LAYERS = (
    "conv_in",
    "down_blocks.0.downsamplers.0.conv",
    "up_blocks.1.resnets.0.conv_shortcut",
    "mid_block.attentions.0.to_q",
    "mid_block.resnets.0.time_emb_proj",
)


def start(**changes: object) -> tuple[dict[str, PreparedLayer], dict[str, Layer]]:
    options = QuantizeOptions(steps=STEPS, weight_bits=4, activation_bits=4, split_skips=True, **changes)  # type: ignore[arg-type]
    prepared = prepare(tiny_denoiser(), options, dilate=True)
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
