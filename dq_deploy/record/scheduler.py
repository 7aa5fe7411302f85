"""Which schedulers are sampled with, and what their configuration may hold.

A configuration is what diffusers writes into scheduler_config.json. Keys that it lacks have the default of the class it
names; a value that the class does not know is refused, so that nothing is computed by another rule than diffusers'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from reprlib import repr as short
from typing import Any

from dq_deploy.errors import ModelError

SERVED = ("DDIMScheduler", "DDPMScheduler")
"""Classes of diffusers whose steps are taken here."""

BETA_SCHEDULES = {
    "DDIMScheduler": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "DDPMScheduler": ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid"),
}
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "trailing", "linspace")
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")

TRAIN_TIMESTEPS = 1000
"""Default of both classes."""


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_switch(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _is_betas(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and bool(value) and all(_is_number(v) and 0 <= v <= 1 for v in value)
    )


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_train_timesteps": (lambda v: _is_whole(v) and v >= 1, "a whole number from 1"),
    "beta_start": (lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "beta_end": (lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "trained_betas": (_is_betas, "null or a list of numbers from 0 to 1"),
    "clip_sample": (_is_switch, "true or false"),
    "set_alpha_to_one": (_is_switch, "true or false"),
    "thresholding": (_is_switch, "true or false"),
    "rescale_betas_zero_snr": (_is_switch, "true or false"),
    "steps_offset": (_is_whole, "a whole number"),
    "clip_sample_range": (lambda v: _is_number(v) and v > 0, "a number above 0"),
    "sample_max_value": (lambda v: _is_number(v) and v >= 1, "a number from 1"),
    "dynamic_thresholding_ratio": (lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "prediction_type": (lambda v: v in PREDICTIONS, f"one of {', '.join(PREDICTIONS)}"),
    "timestep_spacing": (lambda v: v in SPACINGS, f"one of {', '.join(SPACINGS)}"),
}


def scheduler_class(config: Mapping[str, Any]) -> str:
    """The class that a configuration names, one of `SERVED`.

    Raises:
        ModelError: it names none, or another.
    """
    name = config.get("_class_name")
    if name is None:
        raise ModelError(
            f"the scheduler's configuration has no _class_name, expected {' or '.join(SERVED)}; add the class it is of"
        )
    if not isinstance(name, str) or name not in SERVED:
        shown = name if isinstance(name, str) and name.isidentifier() and len(name) < 80 else short(name)
        raise ModelError(
            f"the scheduler is {shown}, expected {' or '.join(SERVED)}: no other's steps are taken here; give a model "
            "whose scheduler_config.json is a DDIMScheduler's, or inputs recorded while your own pipeline ran"
        )
    return name


def check_scheduler(config: Mapping[str, Any]) -> str:
    """Refuse a scheduler whose steps would not be diffusers' own; returns its class.

    Raises:
        ModelError: another class than `SERVED`, or a value that the class does not know; names the key.
    """
    name = scheduler_class(config)
    for key, (fits, expected) in _RULES.items():
        if key in config and not fits(config[key]):
            raise ModelError(f"the scheduler's configuration has {key} {short(config[key])}, expected {expected}")
    schedule = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is None and schedule not in BETA_SCHEDULES[name]:
        expected = ", ".join(BETA_SCHEDULES[name])
        raise ModelError(
            f"the scheduler's configuration has beta_schedule {short(schedule)}, expected one of {expected}"
        )
    if name == "DDPMScheduler" and config.get("variance_type", VARIANCES[0]) not in VARIANCES:
        raise ModelError(
            f"the scheduler's configuration has variance_type {short(config['variance_type'])}, expected one of "
            f"{', '.join(VARIANCES)}"
        )
    return name
