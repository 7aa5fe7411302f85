"""Sensitivity of layers: the output error of a model with that one layer quantized, and nothing left behind."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from dq_deploy.calibration import CalibrationSource
from dq_deploy.methods import SharedOptions, options_for, quantize
from dq_deploy.methods.budget.sensitivity import (
    MOST_INPUTS,
    Question,
    Sensitivity,
    _inputs_to_measure,
    measure_sensitivity,
)
from dq_deploy.methods.progress import Progress
from dq_deploy.models import Denoiser
from dq_deploy.simulation.fake_quant import IntegerLayer, simulate
from tests.tiny import tiny_conditional_denoiser, tiny_denoiser

NAMES = ("down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.to_v", "up_blocks.1.resnets.1.conv2")


def options(**changes: object) -> SharedOptions:
    return options_for(**{"method": "minmax", "steps": 4, "samples": 4, "budget_widths": (2, 4, 8), **changes})  # type: ignore[arg-type]


def measure(denoiser: Denoiser, chosen: SharedOptions, names: tuple[str, ...] = NAMES) -> Sensitivity:
    return measure_sensitivity(denoiser, chosen, CalibrationSource(), weights_of(names, chosen), lambda report: None)[
        "w"
    ]


def weights_of(names: tuple[str, ...], chosen: SharedOptions) -> dict[str, Question]:
    return {"w": Question(units=tuple((n,) for n in names), widths={w: (w, None) for w in chosen.budget_widths})}


@pytest.fixture(scope="module")
def measured() -> Sensitivity:
    return measure(tiny_denoiser(), options())


def test_fewer_bits_move_the_output_more(measured: Sensitivity) -> None:
    assert set(measured.errors) == set(NAMES)
    for name in NAMES:
        assert measured.errors[name][2].shape == (4,)
        assert measured.total(name, 2) > 4 * measured.total(name, 4) > 16 * measured.total(name, 8) > 0


def error_of_model_with(denoiser: Denoiser, alone: SharedOptions, names: tuple[str, ...], steps: int) -> list[float]:
    """Relative output error by step of the float model with some layers of a record put into it."""
    from dq_deploy.methods.prepare.calibration_inputs import collect_inputs
    from dq_deploy.methods.ranges.step_ranges import model_inputs
    from dq_deploy.models import call_denoiser
    from dq_deploy.simulation.fake_quant import replace_layer

    simulation = simulate(quantize(denoiser, alone))
    model = copy.deepcopy(denoiser.module)
    inputs = collect_inputs(denoiser, alone, CalibrationSource(), lambda report: None).inputs
    for name in names:
        kept = simulation.denoiser.get_submodule(name)
        assert isinstance(kept, IntegerLayer)
        replace_layer(model, name, kept)
        kept.context.step = torch.from_numpy(inputs["step"])
    given = model_inputs(inputs, slice(None), denoiser.call)
    with torch.no_grad():
        expected, output = call_denoiser(denoiser.module, given), call_denoiser(model, given)
    at = [inputs["step"] == t for t in range(steps)]
    return [float((output[m] - expected[m]).square().sum() / expected[m].square().sum()) for m in at]


@pytest.mark.parametrize("family", ["unet2d", "unet2d_condition"])
def test_the_error_is_that_of_a_model_with_this_layer_alone(family: str) -> None:
    denoiser = tiny_denoiser() if family == "unet2d" else tiny_conditional_denoiser()
    name = "up_blocks.1.resnets.0.conv1"
    found = measure(denoiser, options(budget_widths=(4,), split_skips=True), (name,))
    alone = options(layer_bits={name: (4, 8)}, split_skips=True, samples=4)
    assert found.errors[name][4] == pytest.approx(error_of_model_with(denoiser, alone, (name,), 4), rel=1e-3)


def test_layers_that_read_one_tensor_are_measured_together_at_widths_of_both_operands() -> None:
    denoiser = tiny_denoiser()
    unit = tuple(f"mid_block.attentions.0.to_{end}" for end in "qkv")
    asked = Question(units=(unit,), widths={3: (8, 3), 6: (8, 6)})
    found = measure_sensitivity(denoiser, options(), CalibrationSource(), {"a": asked}, lambda report: None)["a"]
    assert list(found.errors) == [unit[0]]
    for width in (3, 6):
        alone = options(layer_bits=dict.fromkeys(unit, (8, width)), samples=4)
        assert found.errors[unit[0]][width] == pytest.approx(error_of_model_with(denoiser, alone, unit, 4), rel=1e-3)


def test_the_float_model_is_left_as_it_was(measured: Sensitivity) -> None:
    denoiser = tiny_denoiser()
    before = {key: value.clone() for key, value in denoiser.module.state_dict().items()}
    reports: list[Progress] = []
    again = measure_sensitivity(denoiser, options(), CalibrationSource(), weights_of(NAMES, options()), reports.append)[
        "w"
    ]
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
