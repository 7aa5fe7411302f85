"""Inputs for the float operations: each input varied alone, off the calibrated steps, every row of a table.

The runs of a verification meet every calibrated timestep. These are added to them; only the float operations between
the layers are compared there, for the integer layers' tables have no other entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.models import call_of_record, random_conditions
from dq_deploy.numerics import step_bucket
from dq_deploy.numerics.arrays import F32, Array
from dq_deploy.record import Record
from dq_deploy.verify.inputs import Batch, noised_images, training_steps

SMALL_TABLE = 64
"""Rows of a table of labels up to which each is looked up in the engine; a larger one is compared as a whole."""

BETWEEN = 3
"""Timesteps looked at between calibrated ones."""

AT_ONCE = 8
_LABELS = "class_labels"


def path_batches(record: Record, *, mixed: bool, seed: int) -> list[Batch]:
    """One sample, and copies of it with one input changed: the timestep, each condition, the image.

    Args:
        record: the quantized denoiser.
        mixed: whether a batch may hold samples of several steps; if not, each runs alone.
        seed: of the noise and the conditions.
    """
    generator = np.random.default_rng([seed, 12])
    config, call = record.model_config, call_of_record(record)
    middle = record.timesteps[record.steps // 2 : record.steps // 2 + 1].astype(np.float32)
    if record.steps == 1:
        middle = np.array([training_steps(record) // 2], np.float32)
    base: dict[str, Array] = {"sample": noised_images(record, middle, generator), "timestep": middle}
    base |= random_conditions(call, 1, generator)
    rows = [base, {**base, "sample": noised_images(record, middle, generator)}]
    rows += [{**base, "timestep": np.array([t], np.float32)} for t in other_timesteps(record)]
    others: Mapping[str, Any] = random_conditions(call, 1, generator)
    for name, value in others.items():
        if name == _LABELS:
            rows += [{**base, name: np.array([label], np.int64)} for label in _labels(config)]
        else:
            changed = value + np.float32(8) if np.array_equal(value, base[name]) else value
            rows.append({**base, name: changed.astype(np.asarray(base[name]).dtype)})
    size = AT_ONCE if mixed else 1
    return [_joined(rows[start : start + size], record) for start in range(0, len(rows), size)]


def other_timesteps(record: Record) -> list[float]:
    """Timesteps that are not calibrated: between two, below the first and above the last.

    A record with one bucket may be used anywhere, so there they are spread over all training steps.
    """
    last = training_steps(record) - 1
    known: F32 = record.timesteps
    if record.steps == 1:
        return [float(t) for t in np.rint(np.linspace(0, last, 2 * BETWEEN + 1))] + [0.5, float(last + 1)]
    gaps = np.unique(np.rint(np.linspace(0, record.steps - 2, BETWEEN)).astype(np.int64))
    # not the midpoints, which are the edges between buckets
    between = [float(known[i] + np.float32(0.375) * (known[i + 1] - known[i])) for i in gaps]
    return [*between, float(known[0]) - 1, float(max(known[-1] + 1, last))]


def _labels(config: Mapping[str, Any]) -> Sequence[int]:
    count = int(config["num_class_embeds"])
    if count <= SMALL_TABLE:
        return range(count)
    return sorted({int(i) for i in np.linspace(0, count - 1, AT_ONCE)})


def _joined(rows: Sequence[Mapping[str, Array]], record: Record) -> Batch:
    feeds = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    timesteps: NDArray[np.float32] = feeds["timestep"].astype(np.float32)
    return Batch(feeds=feeds, buckets=step_bucket(timesteps, record.step_edges), kind="path")
