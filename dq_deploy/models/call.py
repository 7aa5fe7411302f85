"""The named inputs of a denoiser, and the arguments its diffusers module takes for them."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import InputError, ModelError, library_errors
from dq_deploy.models.sizes import TensorSpec

if TYPE_CHECKING:
    import torch

    from dq_deploy.record import Call

ADDED_CONDITIONS = ("text_embeds", "time_ids")
"""Arguments inside `added_cond_kwargs` that engines know by their last name alone."""
_ADDED = "added_cond_kwargs."


def engine_name(argument: str) -> str:
    """Name of an engine's input for an argument of the denoiser's forward, as `added_cond_kwargs.text_embeds`."""
    short = argument.removeprefix(_ADDED)
    return short if short in ADDED_CONDITIONS else argument


def argument_name(name: str) -> str:
    """The inverse of `engine_name`."""
    return f"{_ADDED}{name}" if name in ADDED_CONDITIONS else name


def input_specs(call: Call) -> tuple[TensorSpec, ...]:
    """Inputs by the names that engines have for them, in the order of the call."""
    return tuple(
        TensorSpec(name=engine_name(item.name), dtype=item.dtype, shape=tuple(item.shape)) for item in call.inputs
    )


def output_specs(call: Call) -> tuple[TensorSpec, ...]:
    """The one output, `output`.

    Raises:
        ModelError: the call does not say its shape.
    """
    if not call.output:
        raise ModelError("the call does not say the shape of the denoiser's output; quantize or import the model again")
    return (TensorSpec(name="output", dtype="float32", shape=tuple(call.output)),)


def call_arguments(inputs: Mapping[str, Any], constants: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Keyword arguments of a diffusers denoiser.

    Args:
        inputs: tensors by name; dots lead into dicts, or into lists where what follows are numbers from 0.
        constants: plain values by argument, as `Call.constants`; of the same names.
    """
    tree: dict[str, Any] = {}
    for name, value in {**(constants or {}), **inputs}.items():
        *path, last = argument_name(name).split(".")
        place = tree
        for step in path:
            place = place.setdefault(step, {})
        place[last] = value
    return {name: _listed(value) for name, value in tree.items()}


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value and all(key.isdigit() for key in value):
        return [_listed(value[key]) for key in sorted(value, key=int)]
    return {key: _listed(entry) for key, entry in value.items()}


def call_denoiser(
    module: torch.nn.Module, inputs: Mapping[str, Any], constants: Mapping[str, Any] | None = None
) -> torch.Tensor:
    """Output of a diffusers denoiser, or of a record's simulation, for inputs by name.

    Args:
        module: the denoiser.
        inputs: tensors by the names of `input_specs`.
        constants: of the call; a simulation has them already.

    Raises:
        InputError: no sample, which engines and the numerics refuse too.
        LibraryError: torch or diffusers fails in it; names the layer.
    """
    if any(value.shape[0] == 0 for value in inputs.values() if getattr(value, "ndim", 0)):
        raise InputError("batch is empty, expected at least one sample")
    with library_errors(
        lambda error: f"the denoiser fails in {layer_of_error(error, module)}",
        "check the model's configuration and the shapes of what it is given",
    ):
        return output_tensor(module(**call_arguments(inputs, constants)))


def output_tensor(output: Any) -> torch.Tensor:
    """The tensor that a denoiser gives: itself, or the first entry of a tuple or of an output class of diffusers."""
    if isinstance(output, tuple):
        output = output[0]
    elif isinstance(output, Mapping):
        output = next(iter(output.values()))
    tensor: torch.Tensor = output
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
