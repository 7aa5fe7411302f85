"""Calibration inputs: the sampler's own, the same for the same seed, within the memory given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dq_deploy.calibration import Trajectory, build_ddim, collect_trajectory, sampling_timesteps
from dq_deploy.errors import LibraryError, NonFiniteError, OptionError
from dq_deploy.models import Denoiser
from tests.tiny import tiny_denoiser


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return tiny_denoiser(classes=3)


def collect(denoiser: Denoiser, **changes: object) -> Trajectory:
    options = {"steps": 5, "samples": 6, "batch": 4, **changes}
    return collect_trajectory(denoiser.module, denoiser.scheduler_config, denoiser.config, **options)  # type: ignore[arg-type]


def test_timesteps_are_the_samplers_from_low_to_high(denoiser: Denoiser) -> None:
    timesteps = sampling_timesteps(denoiser.scheduler_config, 20)
    assert timesteps.dtype == np.float32
    np.testing.assert_array_equal(timesteps, np.arange(0, 1000, 50, dtype=np.float32))


def test_each_step_holds_what_the_ddim_loop_gives_the_model(denoiser: Denoiser) -> None:
    found = collect(denoiser)
    scheduler = build_ddim(denoiser.scheduler_config, 5)
    assert found.labels is not None
    labels = torch.from_numpy(found.labels)
    latent = torch.from_numpy(found.samples[-1])
    with torch.no_grad():
        for t in scheduler.timesteps:
            stored = found.samples[int(np.searchsorted(found.timesteps, float(t)))]
            np.testing.assert_allclose(stored, latent.numpy(), atol=2e-4)
            time = torch.full((6,), float(t))
            output = denoiser.module(latent, time, class_labels=labels, return_dict=False)[0]
            latent = scheduler.step(output, t, latent, eta=0.0).prev_sample


def test_the_same_seed_gives_the_same_and_another_seed_does_not(denoiser: Denoiser) -> None:
    a, b, c = collect(denoiser), collect(denoiser), collect(denoiser, seed=1)
    np.testing.assert_array_equal(a.samples, b.samples)
    assert not np.array_equal(a.samples, c.samples)


def test_every_class_is_drawn_equally_often_unless_labels_are_named(denoiser: Denoiser) -> None:
    labels = collect(denoiser).labels
    assert labels is not None
    assert np.bincount(labels).tolist() == [2, 2, 2]
    named = collect(denoiser, labels=(1,)).labels
    assert named is not None
    assert set(named) == {1}
    with pytest.raises(OptionError, match="labels span 3"):
        collect(denoiser, labels=(3,))


def test_memory_bounds_the_number_of_trajectories(denoiser: Denoiser) -> None:
    each = 5 * 64 * 4
    found = collect(denoiser, memory_gib=3.5 * each / 2**30)
    assert found.samples.shape == (5, 3, 1, 8, 8)
    assert found.asked == 6
    with pytest.raises(OptionError, match="one trajectory takes that"):
        collect(denoiser, memory_gib=0.5 * each / 2**30)


def test_flat_inputs_mix_the_steps(denoiser: Denoiser) -> None:
    found = collect(denoiser)
    flat = found.flat()
    assert flat["sample"].shape == (30, 1, 8, 8)
    for i in (0, 7, 29):
        assert flat["step"][i] == i % 5
        np.testing.assert_array_equal(flat["sample"][i], found.samples[i % 5, i // 5])
        assert flat["timestep"][i] == found.timesteps[i % 5]
        assert found.labels is not None
        assert flat["class_labels"][i] == found.labels[i // 5]


def test_calibration_noise_is_not_the_noise_images_are_sampled_from(denoiser: Denoiser) -> None:
    from dq_deploy.sampling import noise_for

    drawn = noise_for(denoiser.config, count=6, seed=0)
    assert not np.isclose(collect(denoiser).samples[-1], drawn).any(axis=(1, 2, 3)).all()


def test_a_model_that_gives_nan_is_named(denoiser: Denoiser) -> None:
    broken = tiny_denoiser()
    broken.module.conv_out.bias.data.fill_(float("nan"))  # type: ignore[union-attr, operator]
    with pytest.raises(NonFiniteError, match="timestep 800"):
        collect(broken)


@pytest.mark.parametrize("steps", [0, 1001])
def test_step_counts_the_model_was_not_trained_with_are_refused(denoiser: Denoiser, steps: int) -> None:
    with pytest.raises(OptionError, match="expected 1 to 1000"):
        collect(denoiser, steps=steps)


def test_the_layer_that_made_a_value_that_is_not_finite_is_named() -> None:
    broken = tiny_denoiser(classes=3)
    broken.module.get_submodule("mid_block.resnets.0.conv1").weight.data[0] = np.inf  # type: ignore[operator]
    with pytest.raises(NonFiniteError, match=r"timestep 800, step 1 of 5: .*mid_block\.resnets\.0\.conv1; check"):
        collect(broken)


def test_a_step_that_makes_a_value_that_is_not_finite_is_told_from_a_layer(denoiser: Denoiser) -> None:
    assert denoiser.scheduler_config is not None
    # no signal is left at the last trained step, by which the predicted noise is divided
    zero = {**denoiser.scheduler_config, "rescale_betas_zero_snr": True, "clip_sample": False}
    zero |= {"timestep_spacing": "trailing"}
    with pytest.raises(NonFiniteError, match=r"timestep 999, step 1 of 5: every layer's output is finite.*scheduler"):
        collect_trajectory(denoiser.module, zero, denoiser.config, steps=5, samples=2)


def test_what_a_library_raises_names_the_step_and_the_layer(denoiser: Denoiser) -> None:
    with pytest.raises(LibraryError, match=r"step 1 of 5 \(timestep 800\)|fails in layer conv_in"):
        collect(denoiser, denoise=lambda inputs: torch.ones(2) @ torch.ones(3))
