"""A pipeline's modules on another device while it draws, and back where they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def placed(pipeline: Any, module: torch.nn.Module, device: str) -> Iterator[None]:
    """Inside, the denoiser and every other module of its pipeline are on the device.

    Behind it each has the very tensors it had: weights that are mapped from a file are mapped still.

    Args:
        pipeline: of diffusers, or anything with `components`.
        module: its denoiser.
        device: as torch names it; on "cpu" nothing is moved.
    """
    import torch

    if device == "cpu":
        yield
        return
    parts = [part for part in getattr(pipeline, "components", {}).values() if isinstance(part, torch.nn.Module)]
    owners = [owner for part in (*parts, module) for owner in part.modules()]
    parameters = [
        (owner, name, value, value.data)
        for owner in owners
        for name, value in owner._parameters.items()
        if value is not None
    ]
    buffers = [(owner, name, value) for owner in owners for name, value in owner._buffers.items()]
    try:
        for part in (*parts, module):
            part.to(device)
        yield
    finally:
        for owner, name, value, values in parameters:
            value.data = values
            owner._parameters[name] = value
        for owner, name, held in buffers:
            owner._buffers[name] = held
