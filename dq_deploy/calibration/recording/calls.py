"""What a denoiser is called with while a pipeline runs: its arguments by dotted name, seen on the way in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.errors import InputError
from dq_deploy.models.conditions import SAMPLES
from dq_deploy.numerics.arrays import Array

if TYPE_CHECKING:
    import torch

TIMESTEP = "timestep"
"""The argument of every denoiser of diffusers that says where on the way a sample is."""

PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenCall:
    """One call of a denoiser.

    Attributes:
        tensors: by dotted name as `added_cond_kwargs.text_embeds`, in the order of the forward's signature; `timestep`
            is float32 [B], whatever the pipeline gave.
        plain: JSON values by dotted name that are not the forward's own defaults.
        sample: name of the noisy sample among the tensors.
    """

    tensors: Mapping[str, torch.Tensor]
    plain: Mapping[str, Any]
    sample: str

    @property
    def batch(self) -> int:
        """B, samples of the call."""
        return len(self.tensors[self.sample])


@contextmanager
def watch_calls(module: torch.nn.Module, on_call: Callable[[SeenCall], None]) -> Iterator[None]:
    """Inside, every call of the module is told before it is computed; an exception of `on_call` ends the call.

    The module itself stays in the pipeline, which so finds the class, the configuration and the attributes it expects.

    Raises:
        InputError: from inside a call with an argument that is neither a tensor nor a plain value, or a timestep that
            differs within a sample.
    """
    signature = inspect.signature(type(module).forward)

    def hook(called: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = signature.bind(called, *args, **kwargs)
        on_call(seen_call(bound, signature))

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def seen_call(bound: inspect.BoundArguments, signature: inspect.Signature) -> SeenCall:
    """The call that these arguments of a forward are, `self` the first."""
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, Any] = {}
    me = next(iter(signature.parameters))
    for name, value in bound.arguments.items():
        if name in (me, "return_dict"):
            continue
        parameter = signature.parameters[name]
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            for key, entry in value.items():
                _sort(key, entry, tensors, plain)
        elif name == TIMESTEP and isinstance(value, (int, float, np.integer, np.floating)):
            plain[name] = value  # of any value: who takes the call says which it cannot
        elif name == TIMESTEP or not _is_default(value, parameter.default):
            _sort(name, value, tensors, plain)
    sample = next((name for name in SAMPLES if name in tensors), None)
    if sample is None:
        raise InputError(f"the denoiser is called without {' and '.join(SAMPLES)}, expected one of them as a tensor")
    if TIMESTEP in {*tensors, *plain}:
        given = tensors.get(TIMESTEP, plain.pop(TIMESTEP, None))
        tensors[TIMESTEP] = one_a_sample(given, tensors[sample])
    return SeenCall(tensors=_in_order(tensors, bound), plain=plain, sample=sample)


def _is_default(value: Any, default: Any) -> bool:
    """Whether leaving the argument out would be the same call; an empty dict stands for none."""
    if value is None or (isinstance(value, Mapping) and not value):
        return default is None
    return isinstance(value, PLAIN) and type(value) is type(default) and bool(value == default)


def _sort(name: str, value: Any, tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> None:
    """Put a value, or what is inside it, among the tensors or the plain values."""
    import torch

    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach()
    elif _is_plain(value):
        plain[name] = _as_json(value)
    elif isinstance(value, Mapping) and value and all(isinstance(key, str) for key in value):
        for key, entry in value.items():
            _sort(f"{name}.{key}", entry, tensors, plain)
    elif isinstance(value, (list, tuple)) and value:
        for index, entry in enumerate(value):
            _sort(f"{name}.{index}", entry, tensors, plain)
    else:
        raise InputError(
            f"the pipeline gives the denoiser {name}, a {type(value).__name__}, expected tensors and plain values"
        )


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(entry) for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(entry) for entry in value)
    return isinstance(value, PLAIN) and (not isinstance(value, float) or bool(np.isfinite(value)))


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_json(entry) for key, entry in value.items()}
    return [_as_json(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def one_a_sample(timestep: Any, sample: torch.Tensor) -> torch.Tensor:
    """A timestep as float32 [B], given as one number for all samples or one for each.

    Raises:
        InputError: it is no number, or differs within a sample.
    """
    import torch

    if timestep is None or isinstance(timestep, str):
        raise InputError(f"timestep is {timestep!r}, expected a number, or one for each sample")
    value = timestep if isinstance(timestep, torch.Tensor) else torch.tensor(timestep)
    value = value.detach().to(device=sample.device, dtype=torch.float32)
    batch = len(sample)
    if value.numel() == 1:
        return value.reshape(1).repeat(batch)
    if value.numel() != batch:
        raise InputError(
            f"timestep has shape {tuple(value.shape)} for a batch of {batch}, expected one value a sample: one that "
            "differs within a sample is not supported"
        )
    return value.reshape(batch)


def _in_order(tensors: dict[str, torch.Tensor], bound: inspect.BoundArguments) -> dict[str, torch.Tensor]:
    order = list(bound.signature.parameters)
    place = {name: i for i, name in enumerate(order)}
    return dict(sorted(tensors.items(), key=lambda entry: place.get(entry[0].partition(".")[0], len(order))))


DTYPES = ("int64", "int32", "bool")
"""Element types of inputs besides floats, which are all float32."""


def array_of(name: str, tensor: torch.Tensor) -> Array:
    """A tensor as an array on the CPU: float32 for floats, else its own type.

    Raises:
        InputError: of a type that a record cannot hold.
    """
    if tensor.is_floating_point():
        return np.asarray(tensor.float().cpu().numpy())
    array = np.asarray(tensor.cpu().numpy())
    if array.dtype.name not in DTYPES:
        raise InputError(
            f"the pipeline gives the denoiser {name} as {array.dtype}, expected float, {', '.join(DTYPES)}"
        )
    return array
