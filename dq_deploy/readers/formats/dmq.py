"""DMQ's files: learned equivalent scales, twenty activation sets, power-of-two factors of skip convolutions.

Float weights and biases are not inside. Set i serves the timesteps t with i = 19 - floor((t - 1) / 50). First and last
convolution and everything on the path of the timestep run in float, whatever the file holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dq_deploy.errors import FileProblemError
from dq_deploy.numerics.arrays import F32, I64
from dq_deploy.readers.foreign import ForeignLayer, ForeignModel, ForeignPart
from dq_deploy.readers.formats.quantizer_tensors import Source, halves, positive, weight_tables, whole
from dq_deploy.readers.tensors import Tensors, few

SETS = 20
WIDTH = 50
"""Timesteps that a set serves."""
PREFIX = "model."
INFORMATION = "index_ratio"


def read(source: Source) -> ForeignModel:
    """The network in a file of DMQ, with the float model's weights.

    Raises:
        FileProblemError: the file is not of this layout.
        OptionError: settings that it contradicts.
    """
    weights, sets = _sections(source)
    floats = _float_layers(source)
    layers = {p: _layer(p, weights, sets, source) for p in source.layers if p not in floats}
    for tensors in (weights, *sets):
        _check_known(tensors, source, floats)
    starts = 1 + WIDTH * np.arange(SETS)
    return ForeignModel(
        state=source.float_state,
        layers=layers,
        floats=floats,
        dropped={},
        timesteps=starts.astype(np.float32),
        step_edges=starts[1:].astype(np.float32),
        notes=({"stage": "sets of timesteps", "sets": SETS, "timesteps_each": WIDTH},),
    )


def _float_layers(source: Source) -> dict[str, str]:
    network = source.architecture
    reasons = dict.fromkeys((network.first, network.last), "the method leaves the first and last convolution in float")
    return reasons | dict.fromkeys(network.time_layers, "the method leaves the path of the timestep in float")


def _sections(source: Source) -> tuple[Tensors, list[Tensors]]:
    """The weight section and the activation sets, the one of the lowest timesteps first."""
    names = ["weight", *(f"act_{i}" for i in range(SETS))]
    held: Mapping[str, Any] = source.checkpoint
    bad = [name for name in names if not isinstance(held.get(name), dict)]
    if bad:
        raise FileProblemError(
            f"{source.name} lacks the section {few(bad)}, expected weight and act_0 to act_{SETS - 1}; check `reader`"
        )
    if len(held) != len(names):
        raise FileProblemError(f"{source.name} has the section {few(sorted(set(held) - set(names)))}, which is unknown")
    found = []
    for name in names:
        foreign = sorted(key for key in held[name] if not key.startswith(PREFIX))
        if foreign:
            raise FileProblemError(f"{source.name}: {name} has {few(foreign)}, expected keys under {PREFIX!r}")
        content = {key.removeprefix(PREFIX): value for key, value in held[name].items()}
        found.append(Tensors(content, f"{source.name}, {name}"))
    return found[0], found[:0:-1]


def _check_known(tensors: Tensors, source: Source, floats: Mapping[str, str]) -> None:
    """Everything was asked for, is information only, or belongs to a layer that stays float."""
    for name in tensors.unasked():
        path, _, rest = name.partition(".wqtizer") if ".wqtizer" in name else name.partition(".aqtizer")
        path = path.removesuffix(".gamma")
        known = path in floats or re.fullmatch(rf"1?\.{INFORMATION}", rest)
        if not known:
            raise FileProblemError(
                f"{tensors.source} has {name}, which {source.architecture.family} has no place for; "
                "check `reader` and the architecture in the settings"
            )


def _layer(path: str, weights: Tensors, sets: list[Tensors], source: Source) -> ForeignLayer:
    weight = np.asarray(source.float_state[f"{path}.weight"], np.float32)
    gamma = positive(weights.take(f"{path}.gamma").reshape(-1), f"{weights.source}: {path}.gamma")
    if len(gamma) != weight.shape[1]:
        raise FileProblemError(
            f"{weights.source}: {path}.gamma has {len(gamma)} channels, expected {weight.shape[1]} as the weight has"
        )
    second = f"{path}.wqtizer1.delta" in weights
    first = weights.take(f"{path}.wqtizer.alpha")
    if weight.ndim == 2 and first.ndim > 2:  # from a diffusers folder, which has linear layers there
        weight = weight.reshape(*weight.shape, *(1,) * (first.ndim - 2))
    widths = halves(path, weight.shape[1], first.shape[1] if first.ndim > 1 else None, second, source)
    bits, activation_bits = source.settings.bits_of(path)
    parts = []
    for suffix, width in zip(("", "1"), widths, strict=False):
        alpha = weights.take(f"{path}.wqtizer{suffix}.alpha")
        expected = (weight.shape[0], width, *weight.shape[2:])
        if alpha.shape != expected:
            raise FileProblemError(
                f"{weights.source}: {path}.wqtizer{suffix}.alpha has shape {alpha.shape}, expected {expected}"
            )
        delta, zero = weight_tables(weights, f"{path}.wqtizer{suffix}", len(weight), alpha=True)
        name = f"{path}.aqtizer{suffix}"
        parts.append(
            ForeignPart(
                delta=delta,
                zero_point=zero,
                alpha=alpha,
                act_delta=positive(_table(sets, f"{name}.delta"), f"{source.name}: {name}.delta"),
                act_zero_point=whole(_table(sets, f"{name}.zero_point"), f"{source.name}: {name}.zero_point"),
                masks=_exponents(sets, f"{name}.scale_mask", width),
            )
        )
    return ForeignLayer(
        path=path,
        weight=weight,
        bias=source.float_state.get(f"{path}.bias"),
        widths=widths,
        parts=tuple(parts),
        weight_bits=bits,
        activation_bits=activation_bits,
        signed=False,
        gamma=gamma,
    )


def _table(sets: list[Tensors], name: str) -> F32:
    values = []
    for tensors in sets:
        value = tensors.take(name)
        if value.size != 1:
            raise FileProblemError(f"{tensors.source}: {name} has shape {value.shape}, expected one number")
        values.append(value.reshape(()))
    return np.asarray(values, np.float32)


def _exponents(sets: list[Tensors], name: str, width: int) -> I64 | None:
    """[T, C] exponents j of the factors 2^-j, or None where there are none."""
    held = [name in tensors for tensors in sets]
    if not any(held):
        return None
    rows = []
    for tensors in sets:
        value = tensors.take(name)
        if value.shape != (width,):
            raise FileProblemError(f"{tensors.source}: {name} has shape {value.shape}, expected ({width},)")
        exponents = -np.log2(positive(value, f"{tensors.source}: {name}"))
        if (exponents != np.rint(exponents)).any() or exponents.min() < 0 or exponents.max() > 7:
            raise FileProblemError(f"{tensors.source}: {name} holds no powers of two from 1/128 to 1, expected those")
        rows.append(exponents.astype(np.int64))
    return np.stack(rows)
