"""Sensitivity of layers: the output error of a model with that one layer quantized, and nothing left behind."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from dq_deploy.calibration import CalibrationSource
from dq_deploy.methods import SharedOptions, options_for, quantize
from dq_deploy.methods.budget.sensitivity import MOST_INPUTS, Sensitivity, _inputs_to_measure, measure_sensitivity
from dq_deploy.methods.progress import Progress
from dq_deploy.models import Denoiser
from dq_deploy.simulation.fake_quant import IntegerLayer, simulate
from tests.tiny import tiny_conditional_denoiser, tiny_denoiser

NAMES = ("down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.to_v", "up_blocks.1.resnets.1.conv2")


def options(**changes: object) -> SharedOptions:
    return options_for(**{"method": "minmax", "steps": 4, "samples": 4, "budget_widths": (2, 4, 8), **changes})  # type: ignore[arg-type]


def measure(denoiser: Denoiser, chosen: SharedOptions, names: tuple[str, ...] = NAMES) -> Sensitivity:
    return measure_sensitivity(denoiser, chosen, CalibrationSource(), names, lambda report: None)


@pytest.fixture(scope="module")
def measured() -> Sensitivity:
    return measure(tiny_denoiser(), options())


def test_fewer_bits_move_the_output_more(measured: Sensitivity) -> None:
    assert set(measured.errors) == set(NAMES)
    for name in NAMES:
        assert measured.errors[name][2].shape == (4,)
        assert measured.total(name, 2) > 4 * measured.total(name, 4) > 16 * measured.total(name, 8) > 0


@pytest.mark.parametrize("family", ["unet2d", "unet2d_condition"])
def test_the_error_is_that_of_a_model_with_this_layer_alone(family: str) -> None:
    denoiser = tiny_denoiser() if family == "unet2d" else tiny_conditional_denoiser()
    name = "up_blocks.1.resnets.0.conv1"
    chosen = options(budget_widths=(4,), split_skips=True)
    found = measure(denoiser, chosen, (name,))
    alone = options(layer_bits={name: (4, 8)}, split_skips=True, samples=4)
    simulation = simulate(quantize(denoiser, alone))
    kept = simulation.denoiser.get_submodule(name)
    assert isinstance(kept, IntegerLayer)
    model = copy.deepcopy(denoiser.module)
    parent = model.get_submodule(name.rpartition(".")[0])
    parent.conv1 = kept
    from dq_deploy.methods.prepare.calibration_inputs import collect_inputs
    from dq_deploy.methods.ranges.step_ranges import model_inputs
    from dq_deploy.models import call_denoiser

    inputs = collect_inputs(denoiser, alone, CalibrationSource(), lambda report: None).inputs
    kept.context.step = torch.from_numpy(inputs["step"])
    given = model_inputs(inputs, slice(None), denoiser.call)
    with torch.no_grad():
        expected, output = call_denoiser(denoiser.module, given), call_denoiser(model, given)
    for t in range(4):
        mine = inputs["step"] == t
        error = (output[mine] - expected[mine]).square().sum() / expected[mine].square().sum()
        assert found.errors[name][4][t] == pytest.approx(float(error), rel=1e-3)


def test_the_float_model_is_left_as_it_was(measured: Sensitivity) -> None:
    denoiser = tiny_denoiser()
    before = {key: value.clone() for key, value in denoiser.module.state_dict().items()}
    reports: list[Progress] = []
    again = measure_sensitivity(denoiser, options(), CalibrationSource(), NAMES, reports.append)
    assert all("forward" not in child.__dict__ for child in denoiser.module.modules())
    assert all(torch.equal(value, before[key]) for key, value in denoiser.module.state_dict().items())
    for name in NAMES:
        np.testing.assert_array_equal(again.errors[name][4], measured.errors[name][4])
    told = [(r.done, r.total) for r in reports if r.stage == "sensitivity"]
    assert told[-1] == (9, 9)


def test_influence_weighs_steps_as_the_sampler_does() -> None:
    found = Sensitivity(steps=np.arange(2), influence=np.array([0.5, 2.0]), errors={"a": {4: np.array([1.0, 3.0])}})
    assert found.total("a", 4) == 0.25 + 12


def test_the_number_of_inputs_is_bounded_and_every_step_or_an_even_draw_of_them_has_some() -> None:
    few = _inputs_to_measure(np.tile(np.arange(4), 50), 4)
    assert np.bincount(np.tile(np.arange(4), 50)[few]).tolist() == [10] * 4
    many = _inputs_to_measure(np.tile(np.arange(100), 3), 100)
    assert len(many) == MOST_INPUTS
    assert {0, 99} <= set((np.tile(np.arange(100), 3)[many]).tolist())
