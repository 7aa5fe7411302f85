"""Calibration inputs of a denoiser alone: its own scheduler's, the same for the same seed, within the memory given."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from dq_deploy.calibration import RecordedInputs, random_inputs, run_of_denoiser, sampling_timesteps
from dq_deploy.errors import LibraryError, ModelError, NonFiniteError, OptionError
from dq_deploy.models import Denoiser
from tests.calibration.recorded_runs import recorded
from tests.tiny import tiny_denoiser

DDIM = {**tiny_denoiser().scheduler_config, "_class_name": "DDIMScheduler"}  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return tiny_denoiser(classes=3)


def collect(denoiser: Denoiser, **changes: Any) -> RecordedInputs:
    return recorded(denoiser, **{"steps": 5, "samples": 6, "at_once": 4, **changes})


def test_timesteps_are_the_samplers_from_low_to_high(denoiser: Denoiser) -> None:
    timesteps = sampling_timesteps(denoiser.scheduler_config, 20)
    assert timesteps.dtype == np.float32
    np.testing.assert_array_equal(timesteps, np.arange(0, 1000, 50, dtype=np.float32))


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"]
)
def test_each_step_holds_what_diffusers_own_steps_give_the_model(name: str, denoiser: Denoiser) -> None:
    scheduler = getattr(diffusers, name)()
    found = collect(denoiser, scheduler_config={**scheduler.config, "_class_name": name})
    flat = found.flat()
    labels = torch.from_numpy(flat["class_labels"][flat["step"] == 0])
    scheduler.set_timesteps(5)
    latent = unit_noise(6) * getattr(scheduler, "init_noise_sigma", 1.0)
    with torch.no_grad():
        for t in scheduler.timesteps:
            stored = torch.from_numpy(flat["sample"][flat["timestep"] == np.float32(float(t))])
            scale = getattr(scheduler, "scale_model_input", lambda value, _t: value)
            scaled = scale(latent, t)
            np.testing.assert_allclose(stored, scaled.numpy(), atol=2e-4, rtol=1e-4)
            output = denoiser.module(scaled, t.float().expand(6), class_labels=labels, return_dict=False)[0]
            latent = scheduler.step(output, t, latent).prev_sample


def unit_noise(count: int) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(500_000_009 + i) for i in range(count)]
    return torch.stack([torch.randn((1, 8, 8), generator=generator) for generator in generators])


def test_a_pipeline_that_takes_no_size_records_in_the_one_of_the_configuration() -> None:
    config = {**diffusers.ScoreSdeVeScheduler().config, "_class_name": "ScoreSdeVeScheduler"}
    found = collect(
        tiny_denoiser(in_channels=3, out_channels=3), scheduler_config=config, steps=2, samples=1, at_once=1
    )
    assert found.flat()["sample"].shape[1:] == (3, 8, 8)


def test_the_same_seed_gives_the_same_and_another_seed_does_not(denoiser: Denoiser) -> None:
    a, b, c = (collect(denoiser, **more).flat()["sample"] for more in ({}, {}, {"seed": 1}))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_every_class_is_drawn_equally_often_unless_labels_are_named(denoiser: Denoiser) -> None:
    flat = collect(denoiser).flat()
    assert np.bincount(flat["class_labels"][flat["step"] == 0]).tolist() == [2, 2, 2]
    assert set(collect(denoiser, labels=(1,)).flat()["class_labels"]) == {1}
    with pytest.raises(OptionError, match="labels span 3"):
        collect(denoiser, labels=(3,))


def test_what_memory_does_not_hold_lies_on_the_disk_and_is_the_same(denoiser: Denoiser) -> None:
    each = 5 * (64 * 4 + 4 + 8)
    held, spilled = collect(denoiser), collect(denoiser, memory_gib=3.5 * each / 2**30)
    assert (held.rows.on_disk, spilled.rows.on_disk) == (False, True)
    a, b = held.flat(), spilled.flat()
    assert isinstance(b["sample"], np.memmap)
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name])


def test_fewer_are_drawn_where_the_disk_is_full_too(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    from dq_deploy.calibration.recording import sampling_run

    each = 5 * (64 * 4 + 4 + 8)
    monkeypatch.setattr(sampling_run, "free_disk_bytes", lambda: 7 * each)
    found = collect(denoiser, memory_gib=0.5 * each / 2**30)
    assert (found.pictures, found.asked) == (3, 6)
    monkeypatch.setattr(sampling_run, "free_disk_bytes", lambda: each)
    with pytest.raises(OptionError, match="for the inputs of one picture"):
        collect(denoiser, memory_gib=0.5 * each / 2**30)


def test_flat_inputs_mix_the_steps(denoiser: Denoiser) -> None:
    flat = collect(denoiser).flat()
    assert flat["sample"].shape == (30, 1, 8, 8)
    assert flat["step"].tolist() == list(range(5)) * 6
    assert flat["trajectory"].tolist() == np.repeat(np.arange(6), 5).tolist()
    np.testing.assert_array_equal(flat["timestep"], np.tile(np.arange(0, 1000, 200), 6))
    assert len(np.unique(np.stack([flat["trajectory"], flat["class_labels"]]), axis=1).T) == 6


def test_the_rows_of_a_step_are_found_by_number(denoiser: Denoiser) -> None:
    found = collect(denoiser)
    flat = found.flat()
    some = found.at(np.array([4, 0, 4]), np.array([5, 1, 0]))
    np.testing.assert_array_equal(some["sample"], flat["sample"][[29, 5, 4]])


def test_calibration_noise_is_not_the_noise_pictures_are_sampled_from(denoiser: Denoiser) -> None:
    from dq_deploy.models.pipeline.call import generators_of

    flat = collect(denoiser).flat()
    first = flat["sample"][flat["step"] == 4]
    np.testing.assert_array_equal(first, unit_noise(6).numpy())
    drawn = [torch.randn((1, 8, 8), generator=generator).numpy() for generator in generators_of(0, range(6))]
    assert not np.isclose(first, np.stack(drawn)).any(axis=(1, 2, 3)).all()


def test_a_model_that_gives_nan_is_named() -> None:
    broken = tiny_denoiser()
    broken.module.conv_out.bias.data.fill_(float("nan"))  # type: ignore[union-attr, operator]
    with pytest.raises(NonFiniteError, match=r"timestep 800, step 1 of 5: the first layer .* is conv_out"):
        collect(broken)


def test_the_layer_that_made_a_value_that_is_not_finite_is_named() -> None:
    broken = tiny_denoiser(classes=3)
    broken.module.get_submodule("mid_block.resnets.0.conv1").weight.data[0] = np.inf  # type: ignore[operator]
    with pytest.raises(NonFiniteError, match=r"timestep 800, step 1 of 5: .*mid_block\.resnets\.0\.conv1; check"):
        collect(broken)


def test_a_step_that_makes_a_value_that_is_not_finite_is_told_from_a_layer(denoiser: Denoiser) -> None:
    # no signal is left at the last trained step, by which the predicted noise is divided
    zero = {**DDIM, "rescale_betas_zero_snr": True, "clip_sample": False, "timestep_spacing": "trailing"}
    with pytest.raises(NonFiniteError, match=r"behind timestep 999, step 1 of 5: every layer's output is finite"):
        collect(denoiser, scheduler_config=zero)


@pytest.mark.parametrize("steps", [0, 1001])
def test_step_counts_the_model_was_not_trained_with_are_refused(denoiser: Denoiser, steps: int) -> None:
    with pytest.raises(OptionError, match="steps is"):
        collect(denoiser, steps=steps)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "no scheduler/scheduler_config.json; .*give `scheduler`"),
        ({"_class_name": "NoSuchScheduler"}, "is a NoSuchScheduler, which diffusers"),
        ({"num_train_timesteps": 10}, "has no _class_name"),
    ],
)
def test_a_scheduler_that_is_missing_or_unknown_is_never_taken_for_another(
    config: Any, message: str, denoiser: Denoiser
) -> None:
    with pytest.raises(ModelError, match=message):
        run_of_denoiser(denoiser.module, config, denoiser.call, steps=2, samples=1)
    with pytest.raises(ModelError, match=message):
        random_inputs(config, denoiser.call, steps=2, samples=1)


def test_classes_that_the_schedulers_pipeline_does_not_take_are_refused(denoiser: Denoiser) -> None:
    config = {**diffusers.ScoreSdeVeScheduler().config, "_class_name": "ScoreSdeVeScheduler"}
    with pytest.raises(OptionError, match="the model has classes, and ScoreSdeVePipeline"):
        recorded(denoiser, steps=2, samples=2, scheduler_config=config)


def test_what_a_library_raises_names_the_step(denoiser: Denoiser) -> None:
    handle = denoiser.module.conv_in.register_forward_hook(  # type: ignore[union-attr, operator]
        lambda *_: torch.ones(2) @ torch.ones(3)
    )
    try:
        with pytest.raises(LibraryError, match=r"sampling with the float model, step 1 \(timestep 800\)"):
            collect(denoiser)
    finally:
        handle.remove()


def test_the_influence_of_a_ddim_step_is_its_coefficient(denoiser: Denoiser) -> None:
    plain = {**DDIM, "prediction_type": "epsilon", "clip_sample": True}
    run = run_of_denoiser(denoiser.module, plain, denoiser.call, steps=4, samples=1)
    found = run.visits(influence=True).influence
    assert found is not None
    alphas = diffusers.DDIMScheduler.from_config(plain).alphas_cumprod.double().numpy()
    for index, t in enumerate((0, 250, 500, 750)):
        before, behind = alphas[t], alphas[t - 250] if t else 1.0
        expected = np.sqrt(1 - behind) - np.sqrt(behind * (1 - before) / before)
        assert found[index] == pytest.approx(abs(expected), rel=1e-3)
