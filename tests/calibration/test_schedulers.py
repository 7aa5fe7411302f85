"""diffusers' own timesteps and noise levels for the class that is named; what it would index past is refused."""

from __future__ import annotations

import inspect

import diffusers
import numpy as np
import pytest
from diffusers import DDIMScheduler, DDPMScheduler

from dq_deploy.calibration import build_scheduler, noise_levels
from dq_deploy.errors import ModelError, OptionError

SPACINGS = ("leading", "trailing", "linspace")


def configured(kind=DDIMScheduler, **changes):
    scheduler = kind(**changes)
    return scheduler, {**dict(scheduler.config), "_class_name": kind.__name__}


def test_both_classes_have_the_same_defaults_so_that_either_reads_the_others_file():
    parameters = [inspect.signature(kind.__init__).parameters for kind in (DDIMScheduler, DDPMScheduler)]
    for name in set(parameters[0]) & set(parameters[1]) - {"self"}:
        assert parameters[0][name].default == parameters[1][name].default, name


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 3, 7, 19, 20, 999, 1000])
@pytest.mark.parametrize("kind", ["ddim", "ddpm"])
def test_timesteps_are_diffusers_own(spacing, steps, kind):
    own, config = configured(timestep_spacing=spacing)
    own.set_timesteps(steps)
    found = build_scheduler(config, kind, steps)
    assert found.timesteps.tolist() == own.timesteps.tolist()


@pytest.mark.parametrize("changes", [{"steps_offset": 1}, {"steps_offset": -1}, {"trained_betas": [0.1, 0.2]}])
def test_timesteps_outside_of_the_trained_ones_are_refused(changes):
    _, config = configured(num_train_timesteps=4, **changes)
    with pytest.raises(OptionError, match="visit timestep"):
        build_scheduler(config, "ddim", 4)


def test_an_offset_is_fine_where_it_stays_inside():
    _, config = configured(steps_offset=1)
    assert build_scheduler(config, "ddim", 20).timesteps.tolist()[-1] == 1


def test_keys_a_file_lacks_have_the_defaults_of_the_class():
    silent = build_scheduler({"_class_name": "DDPMScheduler"}, "ddim", 10)
    assert silent.config.clip_sample is True
    assert (
        build_scheduler({"_class_name": "DDIMScheduler", "clip_sample": False}, "ddim", 10).config.clip_sample is False
    )


def test_noise_levels_are_those_of_the_named_class():
    timesteps = np.array([0, 500, 999], np.float32)
    for kind in (DDIMScheduler, DDPMScheduler, diffusers.PNDMScheduler, diffusers.DPMSolverMultistepScheduler):
        own, config = configured(kind, beta_schedule="scaled_linear", beta_end=0.012)
        found = noise_levels(config, timesteps)
        assert found is not None
        np.testing.assert_allclose(found[0] ** 2, own.alphas_cumprod.numpy()[[0, 500, 999]], rtol=1e-5)
    silent = noise_levels({"_class_name": "DDIMScheduler"}, timesteps)
    np.testing.assert_allclose(silent[0] ** 2, DDIMScheduler().alphas_cumprod.numpy()[[0, 500, 999]], rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "NoSuchScheduler", "UNet2DModel"]
)
def test_a_class_whose_samples_are_no_such_sum_has_no_levels(name):
    assert noise_levels({"_class_name": name}, np.zeros(1, np.float32)) is None
    assert noise_levels(None, np.zeros(1, np.float32)) is None


def test_a_sampler_refuses_other_classes_by_name():
    with pytest.raises(ModelError, match="EulerDiscreteScheduler"):
        build_scheduler({"_class_name": "EulerDiscreteScheduler"}, "ddim", 4)
