"""diffusers' own scheduler of a saved configuration, with its timesteps set and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dq_deploy.errors import ModelError, OptionError
from dq_deploy.numerics.arrays import F32, F64
from dq_deploy.record.scheduler import SERVED, TRAIN_TIMESTEPS, check_scheduler

KINDS = {"ddim": "DDIMScheduler", "ddpm": "DDPMScheduler"}
"""Class of diffusers of each sampler."""

DEFAULT_CONFIG = {"_class_name": "DDIMScheduler"}
"""Where a model has no scheduler: diffusers' DDIMScheduler with its defaults (1,000 linear steps, noise prediction)."""


def build_scheduler(config: Mapping[str, Any], kind: str, steps: int) -> Any:
    """The diffusers scheduler of a saved configuration, its timesteps set.

    Args:
        config: of a class of `SERVED`; keys it lacks have diffusers' defaults.
        kind: `ddim` or `ddpm`, whose steps are taken; both read the other's configuration, as in diffusers.
        steps: sampling steps.

    Raises:
        OptionError: `steps` is not in 1..the training steps, or a timestep would lie outside of them.
        ModelError: another scheduler, or a value that diffusers refuses.
    """
    check_scheduler(config)
    trained = int(config.get("num_train_timesteps", TRAIN_TIMESTEPS))
    if not 1 <= steps <= trained:
        raise OptionError(f"steps is {steps}, expected 1 to {trained}: the model was trained with at most {trained}")
    scheduler = _made(KINDS[kind], config)
    try:
        scheduler.set_timesteps(steps)
    except Exception as error:
        raise _refused(error) from error
    _check_timesteps(scheduler, config, steps)
    return scheduler


def _made(name: str, config: Mapping[str, Any]) -> Any:
    import diffusers

    try:
        return getattr(diffusers, name).from_config(dict(config))
    except Exception as error:  # of diffusers and of torch: they share no base class
        raise _refused(error) from error


def _refused(error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return ModelError(f"diffusers refuses the scheduler configuration: {reason}; check scheduler_config.json")


def _check_timesteps(scheduler: Any, config: Mapping[str, Any], steps: int) -> None:
    """Every timestep has its own noise level: diffusers would index past the table, or from its end."""
    alphas = scheduler.alphas_cumprod.numpy()
    if not np.isfinite(alphas).all():
        raise ModelError("the scheduler's noise levels are not finite, expected betas from 0 to 1; check its betas")
    visited = [int(t) for t in scheduler.timesteps]
    wrong = [t for t in visited if not 0 <= t < len(alphas)]
    if wrong:
        offset, spacing = config.get("steps_offset", 0), config.get("timestep_spacing", "leading")
        raise OptionError(
            f"{steps} steps with steps_offset {offset} and {spacing} spacing visit timestep {wrong[0]}, expected 0 to "
            f"{len(alphas) - 1}, which the model was trained with; take fewer steps"
        )
    if len(set(visited)) != steps:
        raise OptionError(f"{steps} steps visit {len(set(visited))} different timesteps; take another number of steps")


def noise_levels(config: Mapping[str, Any] | None, timesteps: F32) -> tuple[F32, F32] | None:
    """Factors (signal, noise) of x_t = signal * x_0 + noise * eps at each timestep, by the class that is named.

    None where there is no scheduler, or one whose samples are no such sum: a flow, unscaled noise, an unknown class.

    Raises:
        ModelError: a served class with a value it does not know.
    """
    cumulative = None if config is None else _cumulative_alphas(config)
    if cumulative is None:
        return None
    index = np.clip(np.rint(timesteps).astype(np.int64), 0, len(cumulative) - 1)
    level = cumulative[index]
    return np.sqrt(level).astype(np.float32), np.sqrt(1 - level).astype(np.float32)


def _cumulative_alphas(config: Mapping[str, Any]) -> F64 | None:
    import diffusers
    from diffusers import SchedulerMixin

    name = config.get("_class_name")
    if name in SERVED:
        check_scheduler(config)
        return np.asarray(_made(str(name), config).alphas_cumprod.numpy(), np.float64)
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)) or config.get("use_flow_sigmas"):
        return None
    try:
        alphas = np.asarray(_made(str(name), config).alphas_cumprod.numpy(), np.float64)
    except (ModelError, AttributeError):
        return None
    fine = alphas.ndim == 1 and alphas.size and np.isfinite(alphas).all() and ((alphas >= 0) & (alphas <= 1)).all()
    return alphas if fine else None
