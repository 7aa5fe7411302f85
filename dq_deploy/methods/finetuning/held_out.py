"""Which calibration inputs finetuning is never trained on: they decide what is kept."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dq_deploy.numerics.arrays import I64, Array

HELD_OUT_SHARE = 8
"""One in so many trajectories is held out."""
HELD_OUT_MOST = 160
"""Inputs held out at most, but at least one trajectory."""


def train_and_held_out(inputs: Mapping[str, Array]) -> tuple[I64, int]:
    """An order of the inputs in which those that are not trained on are the last, and how many they are.

    Held out are whole trajectories, the last ones; or a quarter of the inputs where there are fewer than two
    trajectories, or it is not known which one an input is from.

    Args:
        inputs: by name, with `step`, and `trajectory` where they are from some.
    """
    step = inputs["step"]
    count, steps = len(step), int(step.max()) + 1
    order = np.arange(count, dtype=np.int64)
    most = max(HELD_OUT_MOST // steps, 1)
    wanted = steps * min(max(count // (HELD_OUT_SHARE * steps), 1), most)
    trajectory = inputs.get("trajectory")
    if trajectory is None and 2 * wanted <= count:
        return order, wanted
    source = order if trajectory is None else trajectory
    names, sizes = np.unique(source, return_counts=True)
    if 2 * wanted > count or len(names) < 2:
        return order, max(count // 4, 1)
    last = min(int(np.searchsorted(np.cumsum(sizes[::-1]), wanted)) + 1, len(names) - 1)
    held = np.isin(source, names[-last:])
    return np.concatenate([order[~held], order[held]]), int(held.sum())
