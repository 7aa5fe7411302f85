"""The network that settings describe, with its float parameters under diffusers' names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.errors import FileProblemError, OptionError
from dq_deploy.numerics.arrays import Array
from dq_deploy.readers.architectures.ddim_unet import ddim_architecture
from dq_deploy.readers.architectures.ldm_unet import ldm_architecture
from dq_deploy.readers.architectures.module_paths import Architecture, Target
from dq_deploy.readers.tensors import Tensors, few

if TYPE_CHECKING:
    from dq_deploy.readers.settings import Settings

FAMILIES = ("ddim", "ldm")
"""Networks of the sources."""


def architecture_of(settings: Settings) -> Architecture:
    """The network.

    Raises:
        OptionError: an unknown family, or arguments that diffusers cannot express.
    """
    if settings.family == "ddim":
        return ddim_architecture(settings.network)
    if settings.family == "ldm":
        return ldm_architecture(settings.network)
    raise OptionError(f"settings: architecture family is {settings.family!r}, expected {' or '.join(FAMILIES)}")


def float_state(
    tensors: Tensors, architecture: Architecture, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array]:
    """The network's float parameters by the source's keys, all of them there and of the right shape.

    Args:
        tensors: keys without prefix.
        architecture: the network.
        shapes: of the diffusers parameters, by key.

    Raises:
        FileProblemError: one is missing or has another shape.
    """
    state = {}
    for path, targets in architecture.targets.items():
        for suffix in ("weight", "bias"):
            if f"{targets[0].name}.{suffix}" not in shapes:
                continue
            key = f"{path}.{suffix}"
            value = tensors.take(key)
            for target in targets:
                moved(value, target, shapes[f"{target.name}.{suffix}"], f"{tensors.source}: {key}", whole=len(targets))
            state[key] = value
    return state


def moved(value: Array, target: Target, shape: tuple[int, ...], what: str, *, whole: int = 1) -> Array:
    """A source tensor as its diffusers module has it: its rows, without axes of 1 behind.

    Args:
        value: with output rows first.
        target: the module and the rows.
        shape: expected.
        what: is moved, for the message.
        whole: modules that share the source's rows.

    Raises:
        FileProblemError: the shape is another one.
    """
    expected = (shape[0] * whole, *shape[1:])
    tail = value.shape[len(shape) :]
    if value.shape[: len(shape)] != expected or any(size != 1 for size in tail):
        raise FileProblemError(
            f"{what} has shape {value.shape}, expected {expected}; the architecture in the settings is another one"
        )
    rows = value if target.rows is None else value[target.rows]
    return np.ascontiguousarray(rows.reshape(shape))


def without_prefix(state: Mapping[str, Any], source: str, architecture: Architecture) -> Tensors:
    """A float model's tensors under the network's own keys; exponentially averaged weights go before others.

    Raises:
        FileProblemError: the network's keys are not among them.
    """
    first = f"{architecture.first}.weight"
    keys = [f"{path}.{end}" for path in architecture.targets for end in ("weight", "bias")]
    average = {key: f"model_ema.diffusion_model{key.replace('.', '')}" for key in keys}
    if average[first] in state:
        return Tensors({key: state[name] for key, name in average.items() if name in state}, f"{source} (average)")
    for prefix in ("model.diffusion_model.", "", "module.", "model."):
        if prefix + first in state:
            mine = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
            return Tensors(mine, source)
    there = few(sorted(state))
    raise FileProblemError(
        f"{source} has no {first}; it holds {there}: check `float_model` and the architecture's family"
    )
