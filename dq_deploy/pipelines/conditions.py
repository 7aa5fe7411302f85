"""What each image of a denoiser alone is conditioned on: classes, and embeddings from a file or at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from dq_deploy.calibration import CalibrationSource, read_source, rows_in_turn
from dq_deploy.errors import OptionError
from dq_deploy.models import condition_names, input_specs, label_limits, random_conditions
from dq_deploy.numerics.arrays import Array
from dq_deploy.record import Call


def labels_for(call: Call, labels: Sequence[int] | None) -> tuple[int, ...] | None:
    """Checked class labels, or None for an unconditional model.

    Raises:
        OptionError: labels for an unconditional model, none for a conditional one, or one out of range.
    """
    limits = label_limits(call)
    if limits is None:
        if labels is not None:
            raise OptionError("got labels, expected none: the model has no classes; give `count` instead")
        return None
    low, high = limits
    if not labels:
        raise OptionError(f"the model is class-conditional, expected labels from {low} to {high}; give `labels`")
    for label in labels:
        if not low <= label <= high:
            raise OptionError(f"label {label} is out of range, expected {low} to {high}")
    return tuple(int(label) for label in labels)


def conditions_of(call: Call, given: Mapping[str, Array], *, count: int, seed: int) -> dict[str, torch.Tensor]:
    """Embeddings of each image by input name, [N, ...]: the given rows in turn, or random normal ones.

    Args:
        call: of the denoiser.
        given: rows by input name, checked against the call; empty for random ones.
        count: N.
        seed: of random ones; row i depends on the seed and i only.
    """
    names = condition_names(call)
    if not names:
        return {}
    if given:
        rows = rows_in_turn(given, count)
    else:
        drawn = [random_conditions(call, 1, np.random.default_rng([seed, i])) for i in range(count)]
        rows = {name: np.concatenate([row[name] for row in drawn]) for name in names}
    return {name: torch.from_numpy(value) for name, value in rows.items()}


def conditions_for(
    call: Call, path: Path | None, *, count: int, seed: int
) -> tuple[CalibrationSource, dict[str, torch.Tensor]]:
    """The file of conditions and its rows, one an image; random ones without a file.

    Raises:
        OptionError: a file for a denoiser that takes none.
        FileProblemError: it is damaged.
        InputError: a tensor in it is not what the denoiser takes.
    """
    source = read_source(input_specs(call), conditions=path)
    return source, conditions_of(call, source.conditions, count=count, seed=seed)
