"""What stands in the denoiser's place: an engine's Runner or a torch module, behind one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.calibration.non_finite import first_non_finite
from dq_deploy.models import call_denoiser
from dq_deploy.numerics.arrays import F32

if TYPE_CHECKING:
    from torch import nn

    from dq_deploy.engines.base import Runner

Conditions = Mapping[str, NDArray[Any]]
"""What each sample is conditioned on, by input name: [B, ...]; empty for an unconditional model."""
Denoise = Callable[[F32, F32, Conditions], F32]
"""(sample [B, C, H, W], timestep [B], conditions) to the model's output [B, C_out, H, W]."""


def denoiser_of_runner(runner: Runner) -> Denoise:
    """An engine as a `Denoise`."""

    def denoise(sample: F32, timestep: F32, conditions: Conditions) -> F32:
        feeds: dict[str, Any] = {"sample": sample, "timestep": timestep, **conditions}
        return np.asarray(runner.run(feeds)[runner.outputs[0].name])

    return denoise


def denoiser_of_module(module: nn.Module) -> Denoise:
    """A torch module (a diffusers denoiser or the simulation of a record) as a `Denoise`."""
    import torch

    def denoise(sample: F32, timestep: F32, conditions: Conditions) -> F32:
        inputs = {"sample": sample, "timestep": timestep, **conditions}
        with torch.inference_mode():
            tensor = call_denoiser(module, {name: torch.from_numpy(value) for name, value in inputs.items()})
        return np.asarray(tensor.float().numpy())

    return denoise


def first_non_finite_layer(module: nn.Module, sample: F32, timestep: F32, conditions: Conditions) -> str | None:
    """Path of the first submodule without children, in execution order, whose output is not finite; or None.

    Args:
        module: called as a denoiser.
        sample: [B, C, H, W] float32.
        timestep: [B] float32.
        conditions: by input name.
    """
    return first_non_finite(module, lambda: denoiser_of_module(module)(sample, timestep, conditions))
