"""What two schedulers differ in: what weights are trained with is told apart from what one may choose."""

from __future__ import annotations

import json

import pytest

from dq_deploy.errors import OptionError
from dq_deploy.models.pipeline import SHORT_NAMES, build_scheduler
from dq_deploy.models.pipeline.scheduler_values import check_trained_values, differences

DDIM = {"_class_name": "DDIMScheduler"}
PNDM = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
EDM = {"_class_name": "EDMEulerScheduler"}
CONSISTENCY = {"_class_name": "CMStochasticIterativeScheduler"}
COSINE = {**DDIM, "beta_schedule": "squaredcos_cap_v2"}


def plain(scheduler):
    return json.loads(scheduler.to_json_string())


def keys(found):
    return [one.key for one in found.trained], [one.key for one in found.free]


@pytest.mark.parametrize(
    ("calibrated", "changed", "trained", "free"),
    [
        (DDIM, {"beta_end": 0.012}, ["beta_end"], []),
        (DDIM, {"beta_schedule": "scaled_linear"}, ["beta_schedule"], []),
        (DDIM, {"num_train_timesteps": 500}, ["num_train_timesteps"], []),
        (DDIM, {"rescale_betas_zero_snr": True}, ["rescale_betas_zero_snr"], []),
        (DDIM, {"prediction_type": "v_prediction"}, ["prediction_type"], []),
        (DDIM, {"timestep_spacing": "trailing", "steps_offset": 1}, [], ["steps_offset", "timestep_spacing"]),
        (DDIM, {"clip_sample": False, "set_alpha_to_one": False}, [], ["clip_sample", "set_alpha_to_one"]),
        (COSINE, {"beta_end": 0.5}, [], []),  # which a cosine does not read
        (DDIM, {"beta_start": 0.0001, "prediction_type": "epsilon"}, [], []),  # the defaults, spelled out
        (FLOW, {"shift": 3.0, "use_dynamic_shifting": True}, [], ["shift", "use_dynamic_shifting"]),
        (FLOW, {"invert_sigmas": True}, ["invert_sigmas"], []),
        (EDM, {"sigma_data": 1.0}, ["sigma_data"], []),
        (EDM, {"sigma_max": 40.0}, [], ["sigma_max"]),  # where sampling begins
        (CONSISTENCY, {"sigma_max": 40.0}, ["sigma_max"], []),
        ({"_class_name": "EulerDiscreteScheduler"}, {"timestep_type": "continuous"}, ["timestep_type"], []),
        (DDIM, {"_diffusers_version": "0.1", "_name_or_path": "x"}, [], []),
        ({"_class_name": "NoSuchScheduler", "beta_end": 1}, {"beta_end": 2}, ["beta_end"], []),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict | list) else None,
)
def test_a_changed_value_is_found_and_told_apart(calibrated, changed, trained, free):
    assert keys(differences(calibrated, {**calibrated, **changed})) == (trained, free)


@pytest.mark.parametrize("config", [DDIM, PNDM, FLOW, EDM], ids=lambda config: str(config["_class_name"]))
def test_another_class_of_the_same_values_differs_in_nothing(config):
    tried = 0
    for name in SHORT_NAMES:
        try:
            made = build_scheduler(config, name)
        except OptionError:
            continue
        tried += 1
        assert keys(differences(plain(made), config)) == ([], []), name
        assert keys(differences(plain(made), {**config, "num_train_timesteps": 777}))[0] == ["num_train_timesteps"], (
            name
        )
    assert tried >= 2


def test_a_class_for_something_else_is_a_difference_and_no_scheduler_is_none():
    message = r"has the class DDIMScheduler \(noise levels by betas\), expected FlowMatch\w+ \(flow matching\) as"
    with pytest.raises(OptionError, match=message):
        check_trained_values(differences(FLOW, DDIM), "the scheduler of x", "give another")
    assert keys(differences(None, DDIM)) == keys(differences(DDIM, None)) == ([], [])


@pytest.mark.parametrize("name", ["lcm", "tcd", "CogVideoXDDIMScheduler", "dpm++2m", "euler"])
def test_another_class_keeps_the_noise_levels_that_the_model_has_by_default(name):
    """LCM's own defaults are other betas: left out of the file, they would be taken."""
    own, other = build_scheduler(DDIM), build_scheduler(DDIM, name)
    assert float(other.alphas_cumprod[-1]) == pytest.approx(float(own.alphas_cumprod[-1]))
    assert other.config.beta_schedule == "linear"


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        ({**DDIM, "rescale_betas_zero_snr": True}, "heun", "has no rescale_betas_zero_snr, which is True"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "ddim", "has no timestep_type"),
        ({**FLOW, "invert_sigmas": True}, "flow-match-heun", "has no invert_sigmas, which is True"),
    ],
)
def test_a_class_that_has_no_setting_for_how_the_model_was_trained_is_refused(config, name, message):
    with pytest.raises(OptionError, match=message):
        build_scheduler(config, name)
