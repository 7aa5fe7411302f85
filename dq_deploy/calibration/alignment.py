"""Temporal distribution alignment (EDA-DM, arXiv 2401.04585): steps weighed by density and diversity of features.

The feature F_i of step i is what the middle attention receives there, in one sampling run of the float model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.errors import NonFiniteError
from dq_deploy.numerics.arrays import F32, F64

if TYPE_CHECKING:
    import torch

    from dq_deploy.calibration.recording.sampling_run import SamplingRun


FEATURE_TRAJECTORIES = 16
"""Trajectories of the run that features are taken from, fewer where memory does not hold their features."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepAlignment:
    """How steps lie to each other.

    Attributes:
        density: [T] steps whose feature is near, the step itself included.
        diversity: [T] sum over all steps and positions of 1 - cos over channels.
        mean_distance: mean over all pairs of different steps of mean (F_i - F_j)^2; 0 for one step.
    """

    density: F64
    diversity: F64
    mean_distance: float

    def weights(self, diversity_weight: float) -> F64:
        """``w = D + lambda V`` with D and V moved to [0, 1]; [T]."""
        return _unit(self.density) + diversity_weight * _unit(self.diversity)


def align_steps(features: F32, *, radius: float) -> StepAlignment:
    """Density and diversity of each step.

    ``D_i = #{j : mean (F_i - F_j)^2 <= r d}`` with d the mean over all pairs, so that r means the same for every
    model: the paper's r is absolute, and its two releases differ by up to 100 times. ``V_i = sum_j sum (1 - cos)``.

    Args:
        features: [T, B, C, ...] float32.
        radius: r, in mean distances.
    """
    steps = len(features)
    flat = features.reshape(steps, -1)
    distance = _differences(flat) / flat.shape[1]
    pairs = distance[~np.eye(steps, dtype=bool)]
    mean = float(pairs.mean()) if len(pairs) else 0.0
    length = np.sqrt(np.square(features).sum(axis=2, keepdims=True))
    unit = (features / np.maximum(length, np.finfo(np.float32).tiny)).reshape(steps, -1)
    # unit vectors: 1 - cos = |u - v|^2 / 2
    diversity = _differences(unit).sum(axis=1) / 2
    return StepAlignment(
        density=(distance <= radius * mean).sum(axis=1).astype(np.float64), diversity=diversity, mean_distance=mean
    )


def _differences(rows: F32) -> F64:
    """Squared distance of each two rows: [T, T], zeros on the diagonal."""
    result = np.zeros((len(rows), len(rows)))
    for i in range(1, len(rows)):
        for j in range(i):
            difference = rows[i] - rows[j]
            result[i, j] = result[j, i] = float(np.dot(difference, difference))
    return result


def _unit(values: F64) -> F64:
    """Values moved and scaled to [0, 1]; zeros where all are the same."""
    span = float(values.max() - values.min())
    return (values - values.min()) / span if span > 0 else np.zeros(len(values))


def features_by_step(run: SamplingRun, middle: torch.nn.Module, pictures: int) -> F32:
    """Features of a sampling run of some pictures, [T, B, C, ...], index 0 the lowest timestep.

    Where a step has several inputs of a picture, or one step more than another, B is what every step has.

    Args:
        run: of the float model.
        middle: the middle attention, whose input the feature is.
        pictures: to draw.

    Raises:
        NonFiniteError: a feature is NaN or infinite.
    """
    times: list[F32] = []
    features: list[F32] = []

    def note(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = args[0] if args else kwargs["hidden_states"]
        features.append(value.detach().float().cpu().numpy().copy())

    handle = middle.register_forward_pre_hook(note, with_kwargs=True)
    try:
        run.watched(pictures, lambda call: times.append(call.tensors["timestep"].cpu().numpy().copy()))
    finally:
        handle.remove()
    if not all(np.isfinite(value).all() for value in features):
        raise NonFiniteError("the middle of the float model sees NaN or infinity, expected finite values")
    return by_step(np.concatenate(times), np.concatenate(features))


def by_step(timesteps: F32, rows: F32) -> F32:
    """Rows [M, ...] at timesteps [M] as [T, B, ...], B the rows of the timestep that has the fewest."""
    known, counts = np.unique(timesteps, return_counts=True)
    return np.stack([rows[timesteps == t][: counts.min()] for t in known])
