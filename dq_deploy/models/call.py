"""The named inputs of a denoiser, and the arguments its diffusers module takes for them."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import InputError, library_errors

if TYPE_CHECKING:
    import torch

INPUT_NAMES = ("sample", "timestep", "class_labels", "encoder_hidden_states", "text_embeds", "time_ids")
"""Every input a denoiser of any family may have, in the order of its specifications."""

ADDED_CONDITIONS = ("text_embeds", "time_ids")
"""Inputs that diffusers takes inside `added_cond_kwargs`."""


def call_arguments(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a diffusers denoiser for inputs by name; other names are left out."""
    given = {name: inputs[name] for name in INPUT_NAMES if name in inputs and name not in ADDED_CONDITIONS}
    added = {name: inputs[name] for name in ADDED_CONDITIONS if name in inputs}
    return {**given, "added_cond_kwargs": added} if added else given


def call_denoiser(module: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Output of a diffusers denoiser, or of a record's simulation, for inputs by name.

    Raises:
        InputError: no sample, which engines and the numerics refuse too.
        LibraryError: torch or diffusers fails in it; names the layer.
    """
    if any(len(value) == 0 for value in inputs.values() if getattr(value, "ndim", 0)):
        raise InputError("batch is empty, expected at least one sample")
    with library_errors(
        lambda error: f"the denoiser fails in {layer_of_error(error, module)}",
        "check the model's configuration and the shapes of what it is given",
    ):
        output = module(**call_arguments(inputs))
    if isinstance(output, tuple):
        output = output[0]
    tensor: torch.Tensor = getattr(output, "sample", output)
    return tensor


def layer_of_error(error: BaseException, module: torch.nn.Module) -> str:
    """The innermost submodule that was running when an exception was raised, in words."""
    names = {id(child): name for name, child in module.named_modules() if name}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        name = names.get(id(frame.f_locals.get("self")))
        if name is not None:
            return f"layer {name.removeprefix('denoiser.')}"  # a simulation wraps its denoiser
    return "its first statements"
