"""What a pipeline gives its denoiser, as the inputs of an engine."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch

from dq_deploy.calibration.recording.calls import SeenCall, array_of, seen_call
from dq_deploy.engines.base import Runner
from dq_deploy.errors import InputError
from dq_deploy.models import engine_name
from dq_deploy.models.conditions import SAMPLES
from dq_deploy.numerics.arrays import Array


def given_arguments(bound: inspect.BoundArguments, signature: inspect.Signature) -> SeenCall:
    """The arguments of a forward by dotted name, tensors apart from plain values.

    Raises:
        InputError: the sample is no tensor, or an argument is neither tensors nor plain values.
    """
    for name in SAMPLES:
        value = bound.arguments.get(name)
        if value is not None and not isinstance(value, torch.Tensor):
            raise InputError(f"the {name} is a {type(value).__name__}, expected a tensor")
        if value is not None and not value.is_floating_point():
            raise InputError(f"the {name} is {value.dtype}, expected a float type: the output has the same")
    return seen_call(bound, signature)


def feeds_of(given: SeenCall, runner: Runner) -> dict[str, Array]:
    """The engine's inputs.

    Raises:
        InputError: an argument that is no input of the engine and is not what the float class takes by default, one
            whose type would be cut, or a plain value other than the engine was made for.
    """
    types = {spec.name: spec.dtype for spec in runner.inputs}
    feeds: dict[str, Array] = {}
    for name, value in given.tensors.items():
        mine = engine_name(name)
        if mine not in types:
            raise InputError(
                f"the pipeline gives {name}, a tensor of shape {tuple(value.shape)}, which this engine has no input "
                f"for; expected {', '.join(types)}"
            )
        feeds[mine] = _as_type(mine, value, types[mine])
    missing = [name for name in types if name not in feeds]
    if missing:
        raise InputError(
            f"the pipeline does not give {', '.join(missing)}, which this engine takes; expected the call that it was "
            "quantized for"
        )
    _check_plain(given, runner)
    return feeds


def _as_type(name: str, value: torch.Tensor, dtype: np.dtype[Any]) -> Array:
    if value.is_floating_point() and dtype.kind != "f":
        raise InputError(f"{name} is {value.dtype}, expected {dtype}: a fraction would be cut off")
    return np.ascontiguousarray(array_of(name, value).astype(dtype, copy=False))


def _check_plain(given: SeenCall, runner: Runner) -> None:
    """Refuse plain values that differ from those the record was made with.

    Raises:
        InputError: names the first.
    """
    constants = dict((runner.manifest.constants if runner.manifest is not None else None) or {})
    for name, value in given.plain.items():
        if name not in constants:
            raise InputError(
                f"the pipeline gives {name}, {_words(value)}, which this engine has no input for; expected "
                f"{', '.join(spec.name for spec in runner.inputs)}"
            )
        if constants[name] != value:
            raise InputError(
                f"the pipeline gives {name} {_words(value)}, expected {_words(constants[name])}: this engine was made "
                "for that value; quantize again for another"
            )
    left_out = [name for name in constants if name not in given.plain]
    if left_out:
        name = left_out[0]
        raise InputError(
            f"the pipeline does not give {name}, expected {_words(constants[name])}, for which this engine was made"
        )


def _words(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
