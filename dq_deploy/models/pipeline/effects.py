"""What a pipeline takes and does nothing with, or wrong: diffusers says no word."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Mapping
from typing import Any

from dq_deploy.errors import OptionError
from dq_deploy.models.pipeline.schedulers import check_table


def check_effects(pipeline: Any, given: Mapping[str, Any]) -> None:
    """Refuse arguments that would change nothing, and more steps than the model has timesteps.

    Args:
        pipeline: of diffusers, or a `DenoiserPipeline`.
        given: arguments of its `__call__` by name.

    Raises:
        OptionError: names the first.
    """
    _check_negative_prompt(pipeline, given)
    _check_guidance(pipeline, given)
    _check_steps(pipeline, given)
    scheduler = getattr(pipeline, "scheduler", None)
    if given.get("eta") and scheduler is not None and "eta" not in inspect.signature(scheduler.step).parameters:
        raise OptionError(f"eta is {given['eta']}, expected 0: {type(scheduler).__name__} has no eta")
    if "strength" in given and given.get("image") is not None:
        _check_strength(pipeline, given)


def _of_call(pipeline: Any, given: Mapping[str, Any], name: str) -> Any:
    """An argument, or what the pipeline has in its place; None where it has none."""
    default = inspect.signature(type(pipeline).__call__).parameters.get(name)
    return given.get(name, None if default is None else default.default)


def _denoiser_says(pipeline: Any, key: str) -> list[Any]:
    """A key of the configurations of the components that have it."""
    configs = (getattr(part, "config", None) for part in pipeline.components.values())
    return [config[key] for config in configs if isinstance(config, Mapping) and key in config]


def _check_negative_prompt(pipeline: Any, given: Mapping[str, Any]) -> None:
    if given.get("negative_prompt") is None:
        return
    kind = type(pipeline).__name__
    takes = inspect.signature(type(pipeline).__call__).parameters
    if any(width is not None for width in _denoiser_says(pipeline, "time_cond_proj_dim")):
        raise OptionError(
            f"the denoiser of this {kind} is given its guidance as a number and never draws without the prompt, so "
            "`negative_prompt` would change nothing; leave it out"
        )
    name = "true_cfg_scale" if "true_cfg_scale" in takes else "guidance_scale"
    scale = _of_call(pipeline, given, name)
    if isinstance(scale, (int, float)) and scale <= 1:
        how = "`guidance` above 1" if name == "guidance_scale" else f"{name} above 1 in a file as `call`"
        raise OptionError(
            f"`negative_prompt` would change nothing: the {kind} draws with {name} {scale:g}, without guidance; give "
            f"{how}, or leave it out"
        )


def _check_guidance(pipeline: Any, given: Mapping[str, Any]) -> None:
    embeds = _denoiser_says(pipeline, "guidance_embeds")
    takes = inspect.signature(type(pipeline).__call__).parameters
    if "guidance_scale" in given and "true_cfg_scale" in takes and embeds and not any(embeds):
        raise OptionError(
            f"`guidance` would change nothing: the denoiser of this {type(pipeline).__name__} takes no guidance "
            "(guidance_embeds is false); leave it out"
        )


def _check_steps(pipeline: Any, given: Mapping[str, Any]) -> None:
    """A scheduler of noise levels by betas would visit the same timestep at every step."""
    steps = _of_call(pipeline, given, "num_inference_steps")
    for config in (part.config for name, part in pipeline.components.items() if "scheduler" in name and part):
        trained = config.get("num_train_timesteps")
        if isinstance(steps, int) and isinstance(trained, int) and "beta_start" in config and steps > trained:
            raise OptionError(
                f"steps is {steps}, expected 1 to {trained}: the model was trained with at most {trained}"
            )
    if isinstance(steps, int) and "strength" not in given:  # which leaves the first timesteps out
        _check_timesteps(pipeline, steps)


def _check_timesteps(pipeline: Any, steps: int) -> None:
    """Refuse steps for which the pipeline's scheduler would look behind its table."""
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is None or getattr(scheduler, "alphas_cumprod", None) is None or hasattr(scheduler, "sigmas"):
        return
    tried = copy.deepcopy(scheduler)
    with contextlib.suppress(ValueError, TypeError):  # the pipeline sets other timesteps, or says why it cannot
        tried.set_timesteps(steps)
        check_table(tried, steps)


def _check_strength(pipeline: Any, given: Mapping[str, Any]) -> None:
    steps, strength = _of_call(pipeline, given, "num_inference_steps"), given["strength"]
    if isinstance(steps, int) and steps * strength < 1:
        raise OptionError(
            f"strength {strength:g} of {steps} steps leaves no step to take, expected at least 1; give more of either"
        )
