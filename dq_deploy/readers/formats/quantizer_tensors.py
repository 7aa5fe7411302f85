"""Quantizers in a state dict: scales and zero points checked, tables in the order of rising timesteps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.errors import FileProblemError, OptionError
from dq_deploy.numerics.arrays import F32, I32, Array
from dq_deploy.readers.architectures.module_paths import Architecture
from dq_deploy.readers.tensors import Tensors
from dq_deploy.record import edges_from_timesteps

if TYPE_CHECKING:
    from dq_deploy.readers.settings import Settings

LARGEST_ZERO_POINT = 2**20


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """What a reader works on.

    Attributes:
        checkpoint: the file's dict as it is.
        name: of the file, for messages.
        float_state: the float model's parameters by the source's keys.
        architecture: the network.
        layers: paths of its convolutions and linear layers.
        shapes: of the diffusers parameters, by key.
        splits: channels of the first half of each concatenated input, by source path.
        settings: as given.
    """

    checkpoint: Mapping[str, Any]
    name: str
    float_state: Mapping[str, Array]
    architecture: Architecture
    layers: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    splits: Mapping[str, int]
    settings: Settings


def positive(value: Array, what: str) -> F32:
    """Scales as float32.

    Raises:
        FileProblemError: one is zero or negative.
    """
    if value.size == 0 or not bool((value > 0).all()):
        bad = value.reshape(-1)[0] if value.size == 0 or not (value <= 0).any() else value[value <= 0].reshape(-1)[0]
        raise FileProblemError(f"{what} holds {bad}, expected positive scales; the file is damaged or not calibrated")
    return np.ascontiguousarray(value, np.float32)


def whole(value: Array, what: str, rounding: Callable[[Array], Array] = np.rint) -> I32:
    """Zero points as int32, rounded to nearest or as given.

    Raises:
        FileProblemError: one is beyond any code.
    """
    rounded = rounding(np.asarray(value, np.float32))
    if not bool((np.abs(rounded) < LARGEST_ZERO_POINT).all()):
        raise FileProblemError(f"{what} holds {float(np.abs(rounded).max()):g}, expected a zero point")
    return rounded.astype(np.int32)


def weight_tables(tensors: Tensors, prefix: str, rows: int, *, floor: bool = False, alpha: bool) -> tuple[F32, I32]:
    """Scale and zero point of a weight quantizer, [C_out].

    Args:
        tensors: of the file.
        prefix: of the quantizer.
        rows: C_out.
        floor: whether a zero point is rounded down where rounding was learned.
        alpha: whether it was.

    Raises:
        FileProblemError: missing, of another shape, not positive.
    """
    found = []
    for name in ("delta", "zero_point"):
        value = tensors.take(f"{prefix}.{name}")
        if value.size not in (1, rows) or (value.ndim and value.shape[0] != value.size):
            raise FileProblemError(
                f"{tensors.source}: {prefix}.{name} has shape {value.shape}, expected one number for each of "
                f"{rows} output channels"
            )
        found.append(np.broadcast_to(value.reshape(-1), (rows,)))
    rounding = np.floor if floor and alpha else np.rint
    where = f"{tensors.source}: {prefix}"
    return positive(found[0], f"{where}.delta"), whole(found[1], f"{where}.zero_point", rounding)


def halves(path: str, columns: int, first: int | None, second: bool, source: Source) -> tuple[int, ...]:
    """Input channels of each part of a layer.

    Args:
        path: of the layer.
        columns: C_in.
        first: of the first part as alpha says, or None.
        second: whether there is a second quantizer.
        source: for the network's own splits and the settings'.

    Raises:
        FileProblemError: alpha and the network, or the settings, say different numbers.
        OptionError: nothing says it.
    """
    if not second:
        if first not in (None, columns):
            raise FileProblemError(
                f"{source.name}: alpha of {path} has {first} input channels, expected {columns}: the layer is not split"
            )
        return (columns,)
    said = source.settings.splits.get(path)
    known = source.splits.get(path)
    for other, whose in ((said, "the settings"), (known, "the network")):
        if first is not None and other is not None and other != first:
            raise FileProblemError(
                f"{source.name}: alpha of {path} splits {columns} input channels at {first}, {whose} at {other}"
            )
    at = first or said or known
    if at is None or not 0 < at < columns:
        raise OptionError(f"settings: {path} is split and nothing says where; add it to splits, below {columns}")
    return (at, columns - at)


def tables_by_time(source: Source, *, count: int) -> tuple[F32, F32, Sequence[int]]:
    """Rising timesteps, the edges between them, and the place of each in the file's tables.

    Args:
        source: with the settings' timesteps in the tables' order.
        count: entries of the tables; 1 is static.

    Raises:
        OptionError: no timesteps, or another number than the tables have.
    """
    given = source.settings.timesteps
    if count == 1:
        times = np.sort(np.asarray(given or (0.0,), np.float32))
        return times, _edges(source, times), [0]
    if len(given) != count:
        raise OptionError(
            f"settings: timesteps has {len(given)} entries, but {source.name} has tables of {count} steps and does not "
            "say which; give the timesteps in their order"
        )
    order = np.argsort(np.asarray(given, np.float64))
    times = np.asarray(given, np.float32)[order]
    return times, _edges(source, times), [int(i) for i in order]


def _edges(source: Source, times: F32) -> F32:
    edges = source.settings.step_edges
    return edges_from_timesteps(times) if edges is None else np.asarray(edges, np.float32)
