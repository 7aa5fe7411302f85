"""Calibration inputs by choice of steps: uniform as ever, the others by their counts, refusals in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dq_deploy.calibration import CalibrationInputs, CalibrationSource
from dq_deploy.errors import OptionError
from dq_deploy.methods import options_for, quantize
from dq_deploy.methods.prepare.calibration_inputs import collect_inputs, step_influence
from dq_deploy.methods.prepare.preparation import prepare
from dq_deploy.methods.progress import silent
from dq_deploy.methods.ranges.step_ranges import VALUES_A_STEP, collect_ranges
from dq_deploy.models import example_inputs, middle_of
from tests.calibration.recorded_runs import recorded
from tests.tiny import tiny_conditional_denoiser, tiny_denoiser


def collect(denoiser: Any = None, source: CalibrationSource | None = None, **options: Any) -> CalibrationInputs:
    values = {"steps": 6, "samples": 8, "calibration_choice": "tdac", **options}
    return collect_inputs(
        denoiser or tiny_denoiser(classes=3), options_for(**values), source or CalibrationSource(), silent
    )


def test_uniform_inputs_are_the_flat_trajectory_byte_for_byte() -> None:
    denoiser = tiny_denoiser(classes=3)
    found = collect(denoiser, calibration_choice="uniform")
    drawn = recorded(denoiser, steps=6, samples=8)
    step, trajectory = np.tile(np.arange(6), 8), np.repeat(np.arange(8), 6)
    expected = {**drawn.at(step, trajectory), "timestep": drawn.timesteps[step], "step": step, "trajectory": trajectory}
    assert found.inputs.keys() == expected.keys()
    for name, value in expected.items():
        assert found.inputs[name].dtype == value.dtype
        assert found.inputs[name].tobytes() == np.ascontiguousarray(value).tobytes(), name
    assert set(found.provenance) == {"inputs", "sampler"}


@pytest.mark.parametrize("choice", ["tdac", "normal-biased", "influence"])
def test_a_choice_gives_its_counts_of_real_trajectories(choice: str) -> None:
    denoiser = tiny_denoiser(classes=3)
    found = collect(denoiser, calibration_choice=choice, samples=16)
    told = found.provenance
    assert told["choice"] == choice
    assert np.bincount(found.inputs["step"]).tolist() == told["counts"]
    assert sum(told["counts"]) == found.count == 6 * 16
    assert len(set(told["counts"])) > 1
    most = max(told["counts"])
    drawn = recorded(denoiser, steps=6, samples=most)
    flat = drawn.flat()
    known = {(int(t), x.tobytes()) for t, x in zip(flat["step"], flat["sample"], strict=True)}
    given = [(int(t), x.tobytes()) for t, x in zip(found.inputs["step"], found.inputs["sample"], strict=True)]
    assert len(set(given)) == len(given)
    assert set(given) <= known
    np.testing.assert_array_equal(found.inputs["timestep"], found.timesteps[found.inputs["step"]])


def test_the_provenance_says_what_the_weights_were_made_from() -> None:
    told = collect().provenance
    assert {"radius", "diversity_weight", "mean_distance", "density", "diversity", "weights"} <= set(told)
    assert len(told["density"]) == len(told["weights"]) == 6


def test_a_conditional_model_chooses_by_its_middle_transformer() -> None:
    denoiser = tiny_conditional_denoiser()
    assert middle_of(denoiser.module, denoiser.call) == "mid_block.attentions.0"
    found = collect(denoiser, steps=3, samples=4)
    assert found.inputs["encoder_hidden_states"].shape[0] == found.count == 12


def test_without_a_middle_attention_the_feature_is_what_the_middle_block_receives() -> None:
    denoiser = tiny_denoiser(add_attention=False)
    assert middle_of(denoiser.module, denoiser.call) == "mid_block"
    assert collect(denoiser, steps=3, samples=4).count == 12


def test_memory_scales_the_counts_down() -> None:
    fit = int(0.001 / 4 * 2**30) // (6 * 64 * 4)
    found = collect(
        source=CalibrationSource(kind="random"), samples=2 * fit, memory_gib=0.001, calibration_choice="normal-biased"
    )
    assert 0.98 * fit <= max(found.provenance["counts"]) <= fit
    assert min(found.provenance["counts"]) > 10


def test_steps_cannot_be_chosen_where_a_source_has_none_to_compare() -> None:
    denoiser = tiny_denoiser()
    with pytest.raises(OptionError, match='influence with `kind="random"`'):
        collect(denoiser, CalibrationSource(kind="random"), calibration_choice="influence")
    with pytest.raises(OptionError, match='tdac with `kind="random"`'):
        collect(denoiser, CalibrationSource(kind="random"))
    latents = CalibrationSource(kind="latents", latents=example_inputs(denoiser.call, 4, 0))
    with pytest.raises(OptionError, match="tdac with recorded latents, expected uniform"):
        collect(denoiser, latents)
    with pytest.raises(OptionError, match="normal-biased with recorded latents"):
        collect(denoiser, latents, calibration_choice="normal-biased")
    assert collect(denoiser, CalibrationSource(kind="random"), calibration_choice="normal-biased").count == 48


def test_influence_takes_most_inputs_of_the_steps_whose_errors_move_the_sample_most() -> None:
    denoiser = tiny_denoiser()
    influence = step_influence(denoiser, options_for(steps=6, samples=16), CalibrationSource())
    assert influence is not None
    counts = np.bincount(collect(denoiser, calibration_choice="influence", samples=16).inputs["step"])
    assert (np.diff(counts[np.argsort(influence)]) >= 0).all()
    assert counts.argmax() == influence.argmax()


def test_too_few_samples_are_refused_before_anything_runs() -> None:
    with pytest.raises(OptionError, match="samples is 3, expected at least 4 with calibration_choice tdac"):
        collect(samples=3)


def test_a_step_with_few_inputs_still_gives_enough_values_for_the_range_search() -> None:
    denoiser = tiny_denoiser()
    inputs = collect(denoiser, calibration_choice="normal-biased", samples=16, steps=5)
    prepared = prepare(denoiser, options_for(method="minmax"))
    ranges = collect_ranges(prepared, inputs.inputs, steps=5, draw_values=True)
    for found in ranges.values():
        for part in found.parts:
            assert part.values(np.arange(5)).shape[1] >= VALUES_A_STEP


def test_the_record_notes_the_choice() -> None:
    record = quantize(tiny_denoiser(), method="minmax", steps=3, samples=4, calibration_choice="tdac")
    assert record.provenance["calibration"]["choice"] == "tdac"
    assert record.provenance["options"]["calibration_choice"] == "tdac"
