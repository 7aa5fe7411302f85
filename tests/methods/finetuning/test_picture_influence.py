"""How far an error of each step moves the picture, measured by the sampler."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dq_deploy.calibration import CalibrationSource
from dq_deploy.errors import OptionError
from dq_deploy.methods import options_for, quantize
from dq_deploy.methods.finetuning import finetuner, picture_influence
from dq_deploy.methods.finetuning.finetuner import Finetuner
from dq_deploy.methods.finetuning.stages import stages_of
from dq_deploy.methods.progress import silent
from dq_deploy.methods.run import Run
from dq_deploy.record import Record
from tests.calibration.recorded_runs import recorded
from tests.tiny import tiny_denoiser

SHARED: dict[str, Any] = {"steps": 3, "samples": 8, "weight_bits": 4, "activation_bits": 4, "outputs": False}
DDIM = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "clip_sample": False}


@functools.cache
def run() -> Run:
    denoiser = replace(tiny_denoiser(), scheduler_config=DDIM)
    return Run(denoiser=denoiser, source=CalibrationSource(), progress=silent)


@functools.cache
def start() -> Record:
    return quantize(run().denoiser, method="minmax", **SHARED)


def influence(**changes: Any) -> np.ndarray:
    return picture_influence.picture_influence(run(), options_for(method="quest", **{**SHARED, **changes}), start())


def test_a_float_model_that_answers_nothing_passes_errors_on_as_the_sampler_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a float output that does not depend on the sample, a step's error moves the picture by a known factor."""
    module = run().denoiser.module

    class Still(type(module)):  # type: ignore[misc]
        def forward(self, sample: torch.Tensor, *_: Any, **__: Any) -> Any:
            return (torch.zeros_like(sample),)

    from dq_deploy.models.pipeline import build_scheduler

    with monkeypatch.context() as patch:
        patch.setattr(picture_influence, "type", lambda _module: Still, raising=False)
        found = influence()
    scheduler = build_scheduler(DDIM)
    scheduler.set_timesteps(3)
    for t in (1, 2):
        moved = torch.ones(1)
        sample = scheduler.step(moved, scheduler.timesteps[2 - t], torch.zeros(1)).prev_sample
        for later in range(3 - t, 2):
            sample = scheduler.step(torch.zeros(1), scheduler.timesteps[later], sample).prev_sample
        np.testing.assert_allclose(found[t], float(sample.square()), rtol=1e-3)


def test_it_is_the_same_each_time_and_of_every_step() -> None:
    found = influence()
    np.testing.assert_array_equal(found, influence())
    assert found.shape == (3,)
    assert (found > 0).all()


def test_a_record_of_other_steps_is_refused() -> None:
    with pytest.raises(OptionError, match="picture_weights was given, expected a sampling run by a scheduler"):
        influence(steps=2)


def test_weights_draw_the_steps_that_count_and_their_loss_is_the_sum_that_is_judged() -> None:
    """Mean over what is drawn of error / unit is the weighted sum of all steps over the same before: one at first."""
    weights = np.array([0.0, 1.0, 50.0])
    options = options_for(method="quest", **SHARED, finetune_iterations=1)
    inputs = recorded(run().denoiser, steps=3, samples=24, scheduler_config=DDIM).flat()
    tuner = Finetuner(run().denoiser, inputs, options, lambda report: None, stages=1, weights=weights)
    before = torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64)
    unit = tuner._unit(before)
    step = tuner.step[tuner.train]
    assert tuner.chances is not None
    assert float((tuner.chances * before[step] / unit[step])[step > 0].sum()) == pytest.approx(1, rel=1e-5)
    drawn = torch.bincount(step[tuner._draw(torch.Generator().manual_seed(0)).repeat(20)], minlength=3)
    assert drawn[2] > drawn[1] > 0
    assert tuner._share_left(before / 2, before) == pytest.approx(0.5)


def test_finetuning_with_weights_lowers_the_weighted_error() -> None:
    options = options_for(
        method="quest", **SHARED, finetune_iterations=6, batch=8, lr_scale=2e-2, lr_zero_point=0.0, lr_bias=5e-2
    )
    inputs = recorded(run().denoiser, steps=3, samples=24, scheduler_config=DDIM).flat()
    layers = {
        name: replace(layer, parts=tuple(replace(part, scale=part.scale * np.float32(0.6)) for part in layer.parts))
        for name, layer in start().layers.items()
    }
    record = replace(start(), layers=layers)
    tuner = Finetuner(
        run().denoiser, inputs, options, lambda report: None, stages=1, weights=np.array([0.01, 0.1, 1.0])
    )
    stage = stages_of(record.layers, options)[1]
    _, note = tuner.run(stage, 0, record)
    assert note["share_of_error_left"] < 0.95
    assert finetuner.LEAST_CHANCE > 0
