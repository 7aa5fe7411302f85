"""What a scheduler of diffusers says of itself: timesteps and noise levels of the class that is named, or nothing."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest

from dq_deploy.calibration import noise_levels, sampling_timesteps
from dq_deploy.calibration.schedulers import range_of_timesteps
from dq_deploy.errors import ModelError


def configured(kind, **changes):
    scheduler = kind(**changes)
    return scheduler, {**dict(scheduler.config), "_class_name": kind.__name__}


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerDiscreteScheduler", "CMStochasticIterativeScheduler"])
def test_timesteps_are_diffusers_own_fractional_and_negative_ones_too(name):
    own, config = configured(getattr(diffusers, name))
    own.set_timesteps(7)
    assert sampling_timesteps(config, 7).tolist() == sorted({float(np.float32(t)) for t in own.timesteps})
    if name.startswith("CM"):
        assert sampling_timesteps(config, 7)[0] < 0


def test_a_class_that_is_unknown_is_refused():
    with pytest.raises(ModelError, match="NoSuchScheduler, which diffusers"):
        sampling_timesteps({"_class_name": "NoSuchScheduler"}, 4)


def test_noise_levels_are_those_of_the_named_class():
    timesteps = np.array([0, 500, 999], np.float32)
    kinds = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler")
    for kind in (getattr(diffusers, name) for name in kinds):
        own, config = configured(kind, beta_schedule="scaled_linear", beta_end=0.012)
        found = noise_levels(config, timesteps)
        assert found is not None
        np.testing.assert_allclose(found[0] ** 2, own.alphas_cumprod.numpy()[[0, 500, 999]], rtol=1e-5)
    silent = noise_levels({"_class_name": "DDIMScheduler"}, timesteps)
    np.testing.assert_allclose(
        silent[0] ** 2, diffusers.DDIMScheduler().alphas_cumprod.numpy()[[0, 500, 999]], rtol=1e-5
    )


def test_a_flow_goes_from_the_picture_to_the_noise_in_a_line():
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
    signal, noise = noise_levels(config, np.array([250, 1000], np.float32))
    np.testing.assert_allclose([signal, noise], [[0.75, 0], [0.25, 1]], atol=1e-6)
    signal, noise = noise_levels(config, np.array([0.25, 1], np.float32))  # as FLUX is given them
    np.testing.assert_allclose([signal, noise], [[0.75, 0], [0.25, 1]], atol=1e-6)


@pytest.mark.parametrize(
    "name", ["EDMEulerScheduler", "CMStochasticIterativeScheduler", "NoSuchScheduler", "UNet2DModel"]
)
def test_a_class_that_says_no_levels_has_none(name):
    assert noise_levels({"_class_name": name}, np.zeros(1, np.float32)) is None
    assert noise_levels(None, np.zeros(1, np.float32)) is None


def test_only_tables_and_flows_have_a_range_of_timesteps():
    assert range_of_timesteps({"_class_name": "DDPMScheduler", "num_train_timesteps": 100}) == (0, 99)
    assert range_of_timesteps({"_class_name": "FlowMatchEulerDiscreteScheduler"}) == (0, 1000)
    assert range_of_timesteps({"_class_name": "EDMEulerScheduler"}) is None
    assert range_of_timesteps({"_class_name": "NoSuchScheduler"}) is None
