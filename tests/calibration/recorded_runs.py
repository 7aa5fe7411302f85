"""Inputs of a denoiser alone, sampled by its own scheduler."""

from __future__ import annotations

from typing import Any

from dq_deploy.calibration import RecordedInputs, run_of_denoiser
from dq_deploy.models import Denoiser


def recorded(
    denoiser: Denoiser, *, steps: int, samples: int, memory_gib: float = 1.0, **options: Any
) -> RecordedInputs:
    """What `samples` pictures of a denoiser give it."""
    run = run_of_denoiser(
        denoiser.module,
        options.pop("scheduler_config", denoiser.scheduler_config),
        denoiser.call,
        steps=steps,
        samples=samples,
        **{"at_once": 32, **options},
    )
    return run.record(samples, memory_gib=memory_gib)
