"""A scheduler is read by the class its file names, as diffusers reads it, or refused by that name."""

from __future__ import annotations

import diffusers
import pytest

from dq_deploy.errors import ModelError
from dq_deploy.record.scheduler import SERVED, check_scheduler

OTHERS = [
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "LCMScheduler",
    "NoSuchScheduler",
]


@pytest.mark.parametrize("name", SERVED)
def test_what_diffusers_writes_for_a_served_class_passes(name):
    config = dict(getattr(diffusers, name)().config)
    assert check_scheduler({**config, "_class_name": name}) == name
    assert check_scheduler({"_class_name": name}) == name


@pytest.mark.parametrize("name", OTHERS)
def test_another_class_is_refused_by_its_name(name):
    with pytest.raises(ModelError, match=f"the scheduler is {name}, expected DDIMScheduler or DDPMScheduler"):
        check_scheduler({"_class_name": name})


def test_a_file_without_a_class_or_with_nonsense_for_one_is_refused():
    with pytest.raises(ModelError, match="has no _class_name"):
        check_scheduler({"num_train_timesteps": 1000})
    for wrong in ("x" * 5000, ["DDIMScheduler"], 3):
        with pytest.raises(ModelError, match="the scheduler is") as caught:
            check_scheduler({"_class_name": wrong})
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_train_timesteps", 0),
        ("num_train_timesteps", 1000.0),
        ("beta_start", "0.1"),
        ("beta_end", float("nan")),
        ("beta_schedule", "cosine"),
        ("trained_betas", [0.1, float("inf")]),
        ("trained_betas", 3),
        ("clip_sample", "false"),
        ("set_alpha_to_one", 2),
        ("steps_offset", 0.5),
        ("clip_sample_range", 0),
        ("sample_max_value", float("inf")),
        ("dynamic_thresholding_ratio", 2),
        ("thresholding", "yes"),
        ("rescale_betas_zero_snr", 1),
        ("prediction_type", "flow_prediction"),
        ("timestep_spacing", "log"),
        ("variance_type", "fixed_tiny"),
    ],
)
def test_a_value_that_the_class_does_not_know_is_refused_by_its_key(key, value):
    with pytest.raises(ModelError, match=key):
        check_scheduler({"_class_name": "DDPMScheduler", key: value})


def test_betas_that_are_given_make_their_schedule_unread_as_in_diffusers():
    check_scheduler({"_class_name": "DDIMScheduler", "trained_betas": [0.1, 0.2], "beta_schedule": "any"})


def test_a_schedule_of_one_class_alone_is_refused_for_the_other():
    check_scheduler({"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"})
    with pytest.raises(ModelError, match="beta_schedule 'sigmoid'"):
        check_scheduler({"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"})
