"""The scheduler that takes a pipeline's steps: the class its configuration names, or another that fits the model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

from dq_deploy.errors import MissingDependencyError, ModelError, OptionError, library_errors

SHORT_NAMES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
    "dpm++sde": "DPMSolverMultistepScheduler",
    "dpm-singlestep": "DPMSolverSinglestepScheduler",
    "heun": "HeunDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
    "deis": "DEISMultistepScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "kdpm2-ancestral": "KDPM2AncestralDiscreteScheduler",
    "sa-solver": "SASolverScheduler",
    "ipndm": "IPNDMScheduler",
    "flow-match-euler": "FlowMatchEulerDiscreteScheduler",
    "flow-match-heun": "FlowMatchHeunDiscreteScheduler",
    "edm-euler": "EDMEulerScheduler",
    "edm-dpm++2m": "EDMDPMSolverMultistepScheduler",
    "cm": "CMStochasticIterativeScheduler",
    "score-sde-ve": "ScoreSdeVeScheduler",
}
"""Class of diffusers by its usual short name."""

_SETTINGS: dict[str, dict[str, Any]] = {
    "dpm++2m": {"algorithm_type": "dpmsolver++"},
    "dpm++sde": {"algorithm_type": "sde-dpmsolver++"},
}
"""What a short name says besides the class."""

TRAINED = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
    *("snr_shift_scale", "prediction_type", "timestep_type", "use_flow_sigmas", "invert_sigmas", "timestep_scaling"),
    *("sigma_data", "sigma_min", "sigma_max", "scaler", "s"),
)
"""Values that a denoiser's weights are trained with: what noise a timestep stands for, and what the output is."""

_WITHOUT = {
    "timestep_type": "discrete",
    "invert_sigmas": False,
    "rescale_betas_zero_snr": False,
    "snr_shift_scale": 1.0,
    "trained_betas": None,
}
"""What a class does that has no such setting; a model that was trained with something else it steps wrongly."""


def build_scheduler(config: Mapping[str, Any] | None, name: str | None = None) -> Any:
    """The diffusers scheduler of a saved configuration, or another class that the same model can be stepped with.

    Args:
        config: of scheduler_config.json; keys it lacks have the defaults of the class that is built.
        name: a class of diffusers, or a key of `SHORT_NAMES`; None is the class the configuration names.

    Raises:
        ModelError: there is no configuration, it names no class that diffusers has, or diffusers refuses its values.
        OptionError: the class that is asked for does not exist, or does not fit the model.
        MissingDependencyError: the class needs a package that is not installed.
    """
    if name is None:
        return _own(config)
    wanted = SHORT_NAMES.get(name.lower(), name)
    target = _class_of(wanted)
    if target is None:
        raise OptionError(
            f"scheduler is {short(name)}, which diffusers does not have; expected a class of it as DDIMScheduler, or "
            f"one of {', '.join(SHORT_NAMES)}"
        )
    changes = dict(_SETTINGS.get(name.lower(), {}))
    if config is None:
        return _made(target, changes)
    own = _class_of(config.get("_class_name"))
    if own is None:  # the folder does not say what it needs: the user does
        return _made(target, {**_without_class(config), **changes})
    before = _made(own, config)
    _check_fits(own, target, before.config)
    takes, took = (inspect.signature(kind.__init__).parameters for kind in (target, own))
    if "clip_sample" in takes and "clip_sample" not in took:
        changes["clip_sample"] = False  # a class without the setting never clips
    changes |= {key: value for key, value in _WITHOUT.items() if key in takes and key not in took}
    # diffusers leaves out what is a default of the model's own class, and the other class has other defaults
    left_out = [key for key in before.config.get("_use_default_values", ()) if key not in TRAINED]
    found = _made(target, {**_without_class(before.config), **changes, "_use_default_values": left_out})
    if not same_noise_levels(found, before):
        raise OptionError(
            f"the scheduler {target.__name__} has other noise levels than the model's {own.__name__} from the same "
            "values; give another"
        )
    return found


def same_noise_levels(one: Any, other: Any) -> bool:
    """Whether a timestep stands for the same noise in two schedulers with a table; True where one has none."""
    import torch

    ours, theirs = (getattr(scheduler, "alphas_cumprod", None) for scheduler in (one, other))
    if not isinstance(ours, torch.Tensor) or not isinstance(theirs, torch.Tensor):
        return True
    if ours.shape != theirs.shape:
        return False
    # where the last is without signal, some classes put a tiny number in place of 0
    return bool(torch.allclose(ours.double(), theirs.double(), rtol=1e-4, atol=1e-6))


def _own(config: Mapping[str, Any] | None) -> Any:
    advice = "give `scheduler`, a class of diffusers as DDIMScheduler"
    if config is None:
        raise ModelError(f"the folder has no scheduler/scheduler_config.json; copy it, or {advice}")
    named = config.get("_class_name")
    if named is None:
        raise ModelError(f"the scheduler's configuration has no _class_name, expected one; add it, or {advice}")
    own = _class_of(named)
    if own is None:
        import diffusers

        raise ModelError(
            f"the scheduler is a {_word(named)}, which diffusers {diffusers.__version__} does not have; {advice}"
        )
    return _made(own, config)


def _word(name: Any) -> str:
    return name if isinstance(name, str) and name.isidentifier() and len(name) < 80 else short(name)


def _without_class(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "_class_name"}


def _class_of(name: Any) -> Any:
    """The scheduler class of diffusers, or None where it has none of that name.

    Raises:
        MissingDependencyError: diffusers has it, but not without another package.
    """
    import diffusers
    from diffusers import SchedulerMixin

    if not isinstance(name, str) or not name.isidentifier():
        return None
    found = getattr(diffusers, name, None)
    if isinstance(found, type) and issubclass(found, SchedulerMixin):
        return found
    needs = getattr(found, "_backends", None)  # diffusers' stand-in for a class whose packages are not installed
    if needs and name.endswith("Scheduler"):
        raise MissingDependencyError(f"the scheduler {name} needs {' and '.join(needs)}; install it, or give another")
    return None


def _made(kind: Any, config: Mapping[str, Any]) -> Any:
    place = f"the scheduler {kind.__name__} cannot be built from its configuration"
    for key, value in config.items():
        if isinstance(value, float) and not math.isfinite(value) and key != "lambda_min_clipped":
            raise ModelError(f"the scheduler's configuration has {key} {value}, expected a finite number")
    with library_errors(place, "check scheduler_config.json"):
        return kind.from_config(dict(config))


def formulation_of(kind: Any) -> str:
    """What a class takes the denoiser's output for; classes of one formulation step the same model."""
    parameters = inspect.signature(kind.__init__).parameters
    if "beta_start" in parameters:
        return "noise levels by betas"
    if "FlowMatch" in kind.__name__:
        return "flow matching"
    if kind.__name__.startswith("EDM"):
        return "EDM preconditioning"
    return str(kind.__name__)


def _needed(kind: Any) -> list[str]:
    """Arguments that a class cannot take a step without."""
    parameters = inspect.signature(kind.step).parameters if hasattr(kind, "step") else {}
    return [name for name, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]


def _check_fits(own: Any, target: Any, config: Mapping[str, Any]) -> None:
    """Refuse a class that would take the denoiser's output for something else.

    Raises:
        OptionError: the two do not step the same model.
    """
    if own is target:
        return
    further = [name for name in _needed(target) if name not in _needed(own)]
    if further or "Inverse" in target.__name__:
        why = f"asks for {', '.join(further)} at each step" if further else "leads from a picture to noise"
        raise OptionError(f"the scheduler {target.__name__} {why}, the model's {own.__name__} does not; give another")
    takes = inspect.signature(target.__init__).parameters
    for key, plain in _WITHOUT.items():
        if key not in takes and config.get(key, plain) != plain:
            raise OptionError(
                f"the scheduler {target.__name__} has no {key}, which is {short(config[key])} in the model's "
                f"{own.__name__}; give one that has"
            )
    mine, theirs = formulation_of(own), formulation_of(target)
    flows = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if flows and "use_flow_sigmas" not in takes:
        mine = "flow matching"
    if mine != theirs:
        raise OptionError(
            f"the scheduler {target.__name__} is for {theirs}, the model's {own.__name__} for {mine}; "
            "give one that fits the model"
        )


def set_steps(scheduler: Any, steps: int, **further: Any) -> None:
    """Set a scheduler's timesteps.

    Args:
        scheduler: of diffusers.
        steps: sampling steps, from 1.
        further: arguments of its `set_timesteps`, as `mu`.

    Raises:
        OptionError: a number of steps that it cannot take, or timesteps and noise levels that are not finite.
    """
    import torch

    trained = getattr(scheduler.config, "num_train_timesteps", None)
    if steps < 1:
        raise OptionError(f"steps is {steps}, expected at least 1")
    if "beta_start" in scheduler.config and trained is not None and steps > trained:
        raise OptionError(f"steps is {steps}, expected 1 to {trained}: the model was trained with at most {trained}")
    kind = type(scheduler).__name__
    with library_errors(f"{kind} cannot take {steps} steps", "give another number of steps or another scheduler"):
        scheduler.set_timesteps(steps, **further)
    for what in ("timesteps", "sigmas", "alphas_cumprod"):
        values = getattr(scheduler, what, None)
        if isinstance(values, torch.Tensor) and not bool(torch.isfinite(values.double()).all()):
            raise OptionError(f"{steps} steps of {kind} have {what} that are not finite; check its configuration")
    check_table(scheduler, steps)


def check_table(scheduler: Any, steps: int) -> None:
    """Every whole timestep has its own noise level: diffusers would index past the table, or from its end.

    Args:
        scheduler: of diffusers, whose timesteps are set.
        steps: that were asked for.

    Raises:
        OptionError: one has none, or two have one.
    """
    import torch

    levels, timesteps = getattr(scheduler, "alphas_cumprod", None), scheduler.timesteps
    if levels is None or hasattr(scheduler, "sigmas") or timesteps.is_floating_point():
        return
    wrong = timesteps[(timesteps < 0) | (timesteps >= len(levels))]
    offset, spacing = (scheduler.config.get(key) for key in ("steps_offset", "timestep_spacing"))
    if len(wrong):
        raise OptionError(
            f"{steps} steps with steps_offset {offset} and {spacing} spacing visit timestep {int(wrong[0])}, expected "
            f"0 to {len(levels) - 1}, which the model was trained with; take fewer steps"
        )
    if type(scheduler).__name__ in ("DDIMScheduler", "DDPMScheduler") and len(torch.unique(timesteps)) != steps:
        different = len(torch.unique(timesteps))
        raise OptionError(f"{steps} steps visit {different} different timesteps; take another number of steps")
