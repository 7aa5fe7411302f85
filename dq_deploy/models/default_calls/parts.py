"""What a default call is put together from, and the configuration's values that decide it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from reprlib import repr as short
from typing import Any

from dq_deploy.errors import ModelError
from dq_deploy.models.sizes import HEIGHT, WIDTH
from dq_deploy.record import BATCH, CallInput
from dq_deploy.record.model_config import sample_size, value_of


@dataclass(frozen=True, kw_only=True)
class CallParts:
    """A default call before it is one.

    Attributes:
        inputs: named tensors, in order.
        sizes: what each size that varies is by default, the batch left out.
        output: shape of the one output, in the same names; empty where only a run says it.
        constants: plain values by argument.
    """

    inputs: tuple[CallInput, ...]
    sizes: Mapping[str, int]
    output: tuple[int | str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)


def tensor(
    name: str, *shape: int | str, dtype: str = "float32", limits: tuple[float, float] | None = None
) -> CallInput:
    """An input with a batch in front."""
    return CallInput(name=name, dtype=dtype, shape=(BATCH, *shape), limits=limits)


def rotations(name: str, places: int, width: int) -> tuple[CallInput, CallInput]:
    """Cosines and sines of the angles of each place, the same for all samples: [places, width] each."""
    cosines, sines = (CallInput(name=f"{name}.{part}", dtype="float32", shape=(places, width)) for part in (0, 1))
    return cosines, sines


def class_labels(count: int) -> CallInput:
    """Labels from 0 to `count` - 1."""
    return tensor("class_labels", dtype="int64", limits=(0, count - 1))


def whole(config: Mapping[str, Any], key: str) -> int:
    """A whole number from 1 of the configuration, or its class's default.

    Raises:
        ModelError: it is something else.
    """
    value = value_of(config, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"config.json has {key} {short(value)}, expected a whole number from 1")
    return value


def channels_out(config: Mapping[str, Any]) -> int:
    """Channels of the output, which are the input's where the configuration has none.

    Raises:
        ModelError: no whole number from 1.
    """
    return whole(config, "in_channels" if value_of(config, "out_channels") is None else "out_channels")


def sample_sizes(config: Mapping[str, Any], given: Mapping[str, int]) -> dict[str, int]:
    """`height` and `width` of the sample: the given ones, else by the configuration's sample_size.

    Raises:
        ModelError: neither says it.
    """
    if HEIGHT in given and WIDTH in given:
        return {HEIGHT: given[HEIGHT], WIDTH: given[WIDTH]}
    if value_of(config, "sample_size") is None:
        raise ModelError("config.json has no sample_size; give `height` and `width`")
    height, width = sample_size(config)
    return {HEIGHT: given.get(HEIGHT, height), WIDTH: given.get(WIDTH, width)}


def with_default(given: Mapping[str, int], **defaults: int) -> dict[str, int]:
    """Sizes of these names: the given ones, else the defaults."""
    return {name: given.get(name, size) for name, size in defaults.items()}
