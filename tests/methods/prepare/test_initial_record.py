"""A record as the start of training: it begins as it is, whatever made it, and must belong to the model."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dq_deploy.errors import OptionError
from dq_deploy.methods import options_for, quantize
from dq_deploy.methods.prepare.initial_record import (
    check_timesteps,
    groups_of_record,
    initial_state,
    options_of_initial,
    working_module,
)
from dq_deploy.methods.prepare.preparation import prepare
from dq_deploy.models import Denoiser, call_denoiser, example_inputs
from dq_deploy.record import Layer, Record
from dq_deploy.simulation.fake_quant import StepContext, simulate
from tests.tiny import random_record, tiny_conditional_denoiser, tiny_denoiser

FAMILIES = {"unet2d": tiny_denoiser, "unet2d_condition": tiny_conditional_denoiser}


@functools.cache
def denoiser(family: str = "unet2d") -> Denoiser:
    return FAMILIES[family]()


@functools.cache
def made(family: str = "unet2d", **options: Any) -> Record:
    chosen = {"method": "minmax", "steps": 2, "samples": 2, "weight_bits": 4, "outputs": False, **options}
    return quantize(denoiser(family), **chosen)


def made_in_many_ways(family: str) -> Record:
    bits = {"mid_block.*": (3, 6)}
    chosen = {"split_skips": True, "asymmetric_weights": True, "symmetric_activations": True, "layer_bits": bits}
    return quantize(denoiser(family), method="minmax", steps=2, samples=2, outputs=False, **chosen)


def folded(family: str) -> Record:
    return made(family, method="dilatequant", without=("distillation",), weight_bits=8)


RECORDS = {"random": lambda _: random_record(denoiser()), "folds": folded, "split, mixed bits": made_in_many_ways}
CASES = [(family, kind) for family in FAMILIES for kind in RECORDS if kind != "random" or family == "unet2d"]


def assert_same(got: Layer, expected: Layer) -> None:
    for mine, theirs in zip(got.parts, expected.parts, strict=True):
        for name in ("pre", "scale", "zero_point", "w_code", "w_zero_point", "weight_scale"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), err_msg=f"{got.name} {name}")
    assert (got.q_min, got.q_max, got.weight_bits, got.fold) == (
        expected.q_min,
        expected.q_max,
        expected.weight_bits,
        expected.fold,
    )
    assert (got.bias is None) == (expected.bias is None)
    if got.bias is not None and expected.bias is not None:
        np.testing.assert_array_equal(got.bias, expected.bias)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_untrained_layers_are_the_record_bit_for_bit(family: str, kind: str) -> None:
    record = RECORDS[kind](family)
    state = initial_state(record, denoiser(family))
    context = StepContext()
    module, layers = working_module(state, set(record.layers), {}, context)
    assert not state.frozen
    for name, layer in layers.items():
        assert_same(layer.harvest(), record.layers[name])
    inputs = {k: torch.from_numpy(v) for k, v in example_inputs(denoiser(family).call, 3, 0).items()}
    simulation = simulate(record)
    context.step = simulation.bucket(inputs["timestep"])
    with torch.no_grad():
        expected = call_denoiser(simulation, inputs)
        torch.testing.assert_close(call_denoiser(module, inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_float_weights_behind_folds_are_found_again(family: str) -> None:
    record = folded(family)
    prepared = prepare(denoiser(family), options_for(weight_bits=8), dilation_bound="asymmetric")
    state = initial_state(record, denoiser(family))
    assert state.output_factors
    for name, layer in state.layers.items():
        wanted = prepared.layers[name].weight
        assert np.linalg.norm(layer.weight - wanted) < 0.01 * np.linalg.norm(wanted), name


def with_two_weight_sets(record: Record, name: str) -> Record:
    layer = record.layers[name]
    part = layer.parts[0]
    twice = {key: np.concatenate([getattr(part, key)] * 2) for key in ("w_code", "w_zero_point", "weight_scale")}
    groups = (np.arange(record.steps) % 2).astype(np.int32)
    changed = replace(layer, parts=(replace(part, **twice, group_of_step=groups),))
    return replace(record, layers={**record.layers, name: changed})


def test_a_layer_with_several_weight_sets_stays_and_passes_gradients() -> None:
    name = "mid_block.resnets.0.conv1"
    record = with_two_weight_sets(made(), name)
    state = initial_state(record, denoiser())
    assert state.frozen == {name: "2 weight sets by step"}
    context = StepContext()
    module, layers = working_module(state, (), {}, context)
    assert name not in layers
    context.step = torch.tensor([0, 1])
    x = torch.randn(state.layers["mid_block.resnets.0.conv2"].weight.shape[1], 4, 4).expand(2, -1, -1, -1).clone()
    x.requires_grad_()
    module.get_submodule(name)(x).square().sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0


def test_steps_that_share_every_quantizer_are_one_group() -> None:
    assert groups_of_record(made()).tolist() == [0, 1]
    assert groups_of_record(made(steps=4, step_groups=2)).tolist() == [0, 0, 1, 1]
    assert groups_of_record(made(static=True)).tolist() == [0, 0]


def test_options_say_what_the_record_has() -> None:
    record = made(split_skips=True, asymmetric_weights=True, weight_bits=3, activation_bits=6)
    options = options_of_initial(record, denoiser(), options_for(method="quest", steps=2))
    assert (options.weight_bits, options.activation_bits) == (3, 6)
    assert options.split_skips
    assert options.asymmetric_weights
    assert not options.static


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_bits": 5}, "weight_bits is 5, the initial record has 4"),
        ({"keep": ("conv_in",)}, "keep was given with an initial record"),
        ({"layer_bits": {"conv_in": 4}}, "layer_bits was given with an initial record"),
        ({"split_skips": True}, "split_skips was asked for, the initial record has none"),
        ({"static": True}, "static was asked for"),
        ({"step_groups": 5}, "step_groups is 5, the initial record has 2"),
    ],
)
def test_options_that_ask_for_another_record_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        options_of_initial(made(), denoiser(), options_for(method="quest", **changes))


def test_a_record_of_another_model_or_other_steps_is_refused() -> None:
    options = options_for(method="quest")
    with pytest.raises(OptionError, match=r"made from tiny with hash 000000000000, this model has 999999999999"):
        options_of_initial(made(), replace(denoiser(), source_sha256="9" * 64), options)
    with pytest.raises(OptionError, match="family unet2d, the model of unet2d_condition"):
        options_of_initial(made(), denoiser("unet2d_condition"), options)
    other = replace(denoiser(), scheduler_config={**denoiser().scheduler_config, "prediction_type": "v_prediction"})
    with pytest.raises(OptionError, match="has prediction_type 'v_prediction', expected 'epsilon'"):
        options_of_initial(made(), other, options)
    wider = tiny_denoiser(block_out_channels=[8, 24])
    with pytest.raises(OptionError, match="give a record of this model"):
        options_of_initial(made(), wider, options)
    with pytest.raises(OptionError, match=r"visits 3 steps .* the initial record has 2 steps .* `steps=2`"):
        check_timesteps(made(), np.array([0, 300, 600], np.float32))
