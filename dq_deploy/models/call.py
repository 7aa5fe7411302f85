"""The named inputs of a denoiser, and the arguments its diffusers module takes for them."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import InputError, ModelError, library_errors
from dq_deploy.models.sizes import TensorSpec
from dq_deploy.record.extensions import OUTPUT

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
    """The outputs in order; that of most denoisers is the one called `output`.

    Raises:
        ModelError: the call does not say their shapes.
    """
    if not call.outputs:
        raise ModelError("the call does not say the shape of the denoiser's output; quantize or import the model again")
    return tuple(TensorSpec(name=name, dtype="float32", shape=tuple(shape)) for name, shape in call.outputs.items())


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


def on_device_of(module: torch.nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs by name with every tensor where the module's own are."""
    import torch

    own = next(module.parameters(), None)
    own = next(module.buffers(), None) if own is None else own
    if own is None or own.device.type == "meta":
        return dict(inputs)
    return {name: v.to(own.device) if isinstance(v, torch.Tensor) else v for name, v in inputs.items()}


def call_denoiser(
    module: torch.nn.Module, inputs: Mapping[str, Any], constants: Mapping[str, Any] | None = None
) -> torch.Tensor:
    """Output of a diffusers denoiser, or of a record's simulation, for inputs by name.

    Args:
        module: the denoiser.
        inputs: tensors by the names of `input_specs`.
        constants: of the call; a simulation has them already.

    Returns:
        The output; where there are several, [B, numbers of all of them], the values of a sample one after another.

    Raises:
        InputError: no sample, which engines and the numerics refuse too.
        LibraryError: torch or diffusers fails in it; names the layer.
    """
    found = denoiser_outputs(module, on_device_of(module, inputs), constants)
    if len(found) == 1:
        return found[0]
    import torch

    return torch.cat([value.flatten(1) for value in found], 1)


def denoiser_outputs(
    module: torch.nn.Module, inputs: Mapping[str, Any], constants: Mapping[str, Any] | None = None
) -> tuple[torch.Tensor, ...]:
    """Every output of a denoiser, in the order of `output_specs`; arguments and errors are those of `call_denoiser`."""
    if any(value.shape[0] == 0 for value in inputs.values() if getattr(value, "ndim", 0)):
        raise InputError("batch is empty, expected at least one sample")
    with library_errors(
        lambda error: f"the denoiser fails in {layer_of_error(error, module)}",
        "check the model's configuration and the shapes of what it is given",
    ):
        return tuple(named_outputs(module(**call_arguments(inputs, constants))).values())


def named_outputs(output: Any) -> dict[str, torch.Tensor]:
    """What a denoiser gives, by the names of `output_specs`.

    One tensor is `output`, whatever class of diffusers it comes in. Several have the names of their fields, and
    numbers from 0 behind a dot where a field is a list, as `down_block_res_samples.0`; a tuple has numbers alone.

    Args:
        output: a tensor, a tuple of tensors or of tuples of them, or an output class of diffusers.
    """
    found: dict[str, torch.Tensor] = {}
    _add_outputs("", output, found)
    return {OUTPUT: next(iter(found.values()))} if len(found) == 1 else found


def _add_outputs(name: str, value: Any, found: dict[str, torch.Tensor]) -> None:
    if isinstance(value, (Mapping, tuple, list)):
        for key, entry in value.items() if isinstance(value, Mapping) else enumerate(value):
            _add_outputs(f"{name}.{key}" if name else str(key), entry, found)
    elif value is not None:
        found[name or OUTPUT] = value


def layer_of_error(error: BaseException, module: torch.nn.Module) -> str:
    """The innermost submodule that was running when an exception was raised, in words."""
    names = {id(child): name for name, child in module.named_modules() if name}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        name = names.get(id(frame.f_locals.get("self")))
        if name is not None:
            return f"layer {name.removeprefix('denoiser.')}"  # a simulation wraps its denoiser
    return "its first statements"
