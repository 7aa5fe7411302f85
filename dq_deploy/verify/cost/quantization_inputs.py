"""Inputs for measuring what quantization costs: the float model's own way from noise to images, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from dq_deploy.calibration import RecordedInputs, run_of_denoiser
from dq_deploy.errors import ModelError, OptionError
from dq_deploy.models import (
    call_of_record,
    condition_names,
    input_specs,
    macs_of,
    quantizable_layers,
    random_conditions,
)
from dq_deploy.record import Call, Record
from dq_deploy.verify.inputs import Batch, batch_at, shared_inputs

if TYPE_CHECKING:
    import torch

IMAGES = 4
"""Inputs at each step, fewer where all steps together would pass `MOST_MACS`."""

MOST_MACS = 10**12
"""Multiply-accumulates of one pass over all inputs; a measurement takes about four such passes."""

BATCH_BYTES = 1 << 28
"""Layer outputs of one batch, which are kept until the float model has run on the same batch."""

MEMORY_GIB = 2.0
"""Of inputs held in memory; what is more goes to the disk."""

SEED_STEP = 7919
"""From the calibration's seed to one it never used."""


def quantization_inputs(
    record: Record, module: torch.nn.Module, *, seed: int = 0, images: int | None = None
) -> tuple[list[Batch], str]:
    """Inputs of a few sampling trajectories of the float model, step by step, and where they came from in words.

    Their seed is none that calibration used. Noised pictures take the place of trajectories where the record's
    timesteps are not those of its scheduler, as with guidance or a strength, or the model cannot be sampled alone.

    Args:
        record: steps, scheduler and calibration seed.
        module: the float denoiser.
        seed: moves on to other inputs.
        images: inputs at each step; by default `IMAGES` or what the model's size allows.
    """
    steps, call = record.steps, call_of_record(record)
    if images is None:
        images = int(np.clip(MOST_MACS // max(1, steps * macs_of(module, call).of_all), 1, IMAGES))
    at_once = max(1, min(images, BATCH_BYTES // _output_bytes(module, call)))
    own = _calibration_seed(record) + SEED_STEP * (1 + seed)
    shares = [range(start, min(start + at_once, images)) for start in range(0, images, at_once)]
    try:
        found = _recorded(record, module, call, images, at_once, own)
    except (ModelError, OptionError) as error:
        batches = [batch_at(record, [b] * len(share), seed=own, kind="step") for b in range(steps) for share in shares]
        return batches, f"{images} noised random pictures a step, seed {own}: {error}"
    batches, own_names, shared = [], {spec.name for spec in input_specs(call)}, shared_inputs(call)
    for bucket in range(steps):
        for share in shares:
            step = np.full(len(share), bucket, np.int64)
            feeds = found.at(step, np.arange(share.start, share.stop))
            given = {
                name: np.array(value[0]) if name in shared else value
                for name, value in feeds.items()
                if name in own_names
            }
            batches.append(Batch(feeds=given, buckets=step, kind="step", shared=shared, sizes=call.sizes))
    scheduler = (record.scheduler_config or {}).get("_class_name")
    return batches, f"{images} trajectories of the float model by {scheduler}, seed {own}"


def _recorded(
    record: Record, module: torch.nn.Module, call: Call, images: int, at_once: int, seed: int
) -> RecordedInputs:
    """Inputs of trajectories of the denoiser alone, by the record's own scheduler.

    Raises:
        ModelError: the denoiser cannot be sampled alone, or not at the record's timesteps.
        OptionError: likewise.
    """
    drawn = random_conditions(call, images, np.random.default_rng(seed))
    run = run_of_denoiser(
        module,
        record.scheduler_config,
        call,
        steps=record.steps,
        samples=images,
        seed=seed,
        conditions={name: drawn[name] for name in condition_names(call)},
        at_once=at_once,
    )
    if not np.array_equal(run.visits().timesteps, record.timesteps):
        raise ModelError("the record's timesteps are not those of its scheduler alone")
    return run.record(images, memory_gib=MEMORY_GIB)


def _calibration_seed(record: Record) -> int:
    options = record.provenance.get("options")
    seed = options.get("seed") if isinstance(options, Mapping) else None
    return seed if isinstance(seed, int) else 0


def _output_bytes(module: torch.nn.Module, call: Call) -> int:
    """Of all layers' outputs for one sample."""
    return max(1, sum(4 * int(np.prod(site.output_shape[1:])) for site in quantizable_layers(module, call)))
