"""What diffusers' own scheduler of a saved configuration says: the timesteps it visits, and its noise levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dq_deploy.errors import DqError
from dq_deploy.models.pipeline import build_scheduler, set_steps
from dq_deploy.numerics.arrays import F32


def sampling_timesteps(scheduler_config: Mapping[str, Any] | None, steps: int) -> F32:
    """Timesteps that a scheduler of that many steps visits: [T] float32, strictly increasing.

    Raises:
        ModelError: there is no configuration, or one whose class diffusers does not have.
        OptionError: the scheduler cannot take so many steps.
    """
    scheduler = build_scheduler(scheduler_config)
    set_steps(scheduler, steps)
    return np.unique(np.asarray(scheduler.timesteps.cpu().numpy(), np.float32))


def range_of_timesteps(config: Mapping[str, Any]) -> tuple[float, float] | None:
    """Lowest and highest timestep of a scheduler with a table of noise levels, or of a flow; None of any other.

    A class that diffusers does not have has no range either.
    """
    try:
        scheduler = build_scheduler(config)
    except DqError:
        return None
    trained = scheduler.config.get("num_train_timesteps")
    if not isinstance(trained, int):
        return None
    if hasattr(scheduler, "scale_noise"):
        return 0.0, float(trained)
    return (0.0, float(trained - 1)) if hasattr(scheduler, "alphas_cumprod") else None


def noise_levels(config: Mapping[str, Any] | None, timesteps: F32) -> tuple[F32, F32] | None:
    """Factors (signal, noise) of the denoiser's input, signal * x_0 + noise * eps, at each timestep.

    By the class that is named: from its cumulative alphas, or by the share of noise of a flow. None where there is no
    scheduler, or one that says neither.
    """
    if config is None:
        return None
    try:
        scheduler = build_scheduler(config)
    except DqError:  # a record of a class that diffusers lacks is still proven
        return None
    if hasattr(scheduler, "scale_noise"):
        # some denoisers are given the share itself in the place of a timestep
        whole = 1.0 if float(np.max(timesteps)) <= 1 else float(scheduler.config.num_train_timesteps)
        share = np.clip(np.asarray(timesteps, np.float64) / whole, 0, 1)
        return (1 - share).astype(np.float32), share.astype(np.float32)
    known = getattr(scheduler, "alphas_cumprod", None)
    if known is None or config.get("use_flow_sigmas"):
        return None
    alphas = np.asarray(known.numpy(), np.float64)
    fine = alphas.ndim == 1 and alphas.size and np.isfinite(alphas).all() and ((alphas >= 0) & (alphas <= 1)).all()
    if not fine:
        return None
    level = alphas[np.clip(np.rint(timesteps).astype(np.int64), 0, len(alphas) - 1)]
    return np.sqrt(level).astype(np.float32), np.sqrt(1 - level).astype(np.float32)
