"""Inputs for the float operations: each input varied alone, off the calibrated steps, every row of a table.

The runs of a verification meet every calibrated timestep. These are added to them; only the float operations between
the layers are compared there, for the integer layers' tables have no other entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dq_deploy.models import call_of_record, input_specs, random_conditions, sample_name
from dq_deploy.models.conditions import MASKED
from dq_deploy.numerics import step_bucket
from dq_deploy.numerics.arrays import F32, Array
from dq_deploy.record import Record
from dq_deploy.verify.inputs import Batch, anywhere, noised_images, random_feeds, shared_inputs, training_steps

SMALL_TABLE = 64
"""Rows of a table of labels up to which each is looked up in the engine; a larger one is compared as a whole."""

BETWEEN = 3
"""Timesteps looked at between calibrated ones."""

AT_ONCE = 8


def path_batches(record: Record, *, mixed: bool, seed: int) -> list[Batch]:
    """One sample, and copies of it with one input changed: the timestep, each condition, the image.

    Args:
        record: the quantized denoiser.
        mixed: whether a batch may hold samples of several steps; if not, each runs alone.
        seed: of the noise and the conditions.
    """
    generator = np.random.default_rng([seed, 12])
    call = call_of_record(record)
    shared = shared_inputs(call)
    middle = record.timesteps[record.steps // 2 : record.steps // 2 + 1].astype(np.float32)
    if record.steps == 1:
        middle = anywhere(record, 3)[1:2]
    base = random_feeds(record, middle, generator, {})
    rows = [base, {**base, sample_name(call): noised_images(record, middle, generator)}]
    rows += [{**base, "timestep": np.array([t], np.float32)} for t in other_timesteps(record)]
    alone: list[dict[str, Array]] = []
    others = random_conditions(call, 1, generator)
    for item, spec in zip(call.inputs, input_specs(call), strict=True):
        if spec.name in others:
            into = alone if spec.name in shared else rows
            into += [
                {**base, spec.name: value}
                for value in _changed(spec.name, base[spec.name], others[spec.name], item.limits)
            ]
    size = AT_ONCE if mixed else 1
    batches = [_joined(rows[start : start + size], record, shared) for start in range(0, len(rows), size)]
    return batches + [_joined([row], record, shared) for row in alone]


def _changed(name: str, value: Array, other: Array, limits: tuple[float, float] | None) -> list[Array]:
    """Further values of an input: every row of a small table, a shorter mask, other numbers."""
    if value.dtype.kind in "iu" and limits is not None:
        return [np.full_like(value, label) for label in _labels(*limits)]
    if value.dtype.kind in "iub" or name.endswith("mask"):
        ended = value.copy()
        ended[..., value.shape[-1] // 2 + 1 :] = MASKED if value.dtype.kind == "f" and value.ndim > 2 else 0
        return [ended]
    if not np.array_equal(value, other) or limits is not None:
        return [other]
    return [(value + np.float32(8)).astype(value.dtype)]


def other_timesteps(record: Record) -> list[float]:
    """Timesteps that are not calibrated: between two, below the first and above the last.

    A record with one bucket may be used anywhere, so there they are spread over all training steps.
    """
    last = training_steps(record) - 1
    known: F32 = record.timesteps
    if record.steps == 1:
        beyond = [0.5, float(last + 1)] if record.timesteps[0] > 1 or record.timesteps[0] <= 0 else [0.0625]
        return [*(float(t) for t in anywhere(record, 2 * BETWEEN + 1)), *beyond]
    gaps = np.unique(np.rint(np.linspace(0, record.steps - 2, BETWEEN)).astype(np.int64))
    # not the midpoints, which are the edges between buckets
    between = [float(known[i] + np.float32(0.375) * (known[i + 1] - known[i])) for i in gaps]
    first, final = float(known[0]), float(known[-1])
    # some models take the logarithm: a positive timestep stays positive
    below = first / 2 if 0 < first <= 1 else first - 1
    above = max(final + 1, last) if final > 1 else final + float(known[-1] - known[-2])
    return [*between, below, above]


def _labels(low: float, high: float) -> Sequence[int]:
    first, last = int(low), int(high)
    if last - first < SMALL_TABLE:
        return range(first, last + 1)
    return sorted({int(i) for i in np.linspace(first, last, AT_ONCE)})


def _joined(rows: Sequence[Mapping[str, Array]], record: Record, shared: frozenset[str]) -> Batch:
    first = rows[0]
    feeds = {name: first[name] if name in shared else np.concatenate([row[name] for row in rows]) for name in first}
    timesteps: NDArray[np.float32] = feeds["timestep"].astype(np.float32)
    return Batch(
        feeds=feeds,
        buckets=step_bucket(timesteps, record.step_edges),
        kind="path",
        shared=shared,
        sizes=call_of_record(record).sizes,
    )
