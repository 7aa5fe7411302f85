"""Inputs for measuring what quantization costs: the float model's own way from noise to images, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.calibration import collect_trajectory, sampling_timesteps
from dq_deploy.errors import ModelError, OptionError
from dq_deploy.models import call_denoiser, call_of_record, macs_of, quantizable_layers, random_conditions
from dq_deploy.record import Call, Record
from dq_deploy.verify.inputs import Batch, batch_at

if TYPE_CHECKING:
    import torch

IMAGES = 4
"""Inputs at each step, fewer where all steps together would pass `MOST_MACS`."""

MOST_MACS = 10**12
"""Multiply-accumulates of one pass over all inputs; a measurement takes about four such passes."""

BATCH_BYTES = 1 << 28
"""Layer outputs of one batch, which are kept until the float model has run on the same batch."""

SEED_STEP = 7919
"""From the calibration's seed to one it never used."""


def quantization_inputs(
    record: Record, module: torch.nn.Module, *, seed: int = 0, images: int | None = None
) -> tuple[list[Batch], str]:
    """Inputs of a few sampling trajectories of the float model, step by step, and where they came from in words.

    Their seed is none that calibration used. Noised pictures take the place of trajectories where the record's
    timesteps are not those of a DDIM sampler, or the model cannot be sampled that way.

    Args:
        record: steps, scheduler and calibration seed.
        module: the float denoiser.
        seed: moves on to other inputs.
        images: inputs at each step; by default `IMAGES` or what the model's size allows.
    """
    steps, config, call = record.steps, record.model_config, call_of_record(record)
    if images is None:
        images = int(np.clip(MOST_MACS // max(1, steps * macs_of(module, call).of_all), 1, IMAGES))
    at_once = max(1, min(images, BATCH_BYTES // _output_bytes(module, call)))
    own = _calibration_seed(record) + SEED_STEP * (1 + seed)
    shares = [range(start, min(start + at_once, images)) for start in range(0, images, at_once)]
    try:
        if not np.array_equal(sampling_timesteps(record.scheduler_config, steps), record.timesteps):
            raise ModelError("the record's timesteps are not a DDIM sampler's")
        drawn = random_conditions(call, images, np.random.default_rng(own))
        drawn.pop("class_labels", None)
        found = collect_trajectory(
            module,
            record.scheduler_config,
            config,
            steps=steps,
            samples=images,
            batch=at_once,
            seed=own,
            conditions=drawn,
            denoise=partial(call_denoiser, module),
        )
    except (ModelError, OptionError) as error:
        batches = [batch_at(record, [b] * len(share), seed=own, kind="step") for b in range(steps) for share in shares]
        return batches, f"{images} noised random pictures a step, seed {own}: {error}"
    every: dict[str, NDArray[Any]] = dict(found.conditions)
    if found.labels is not None:
        every["class_labels"] = found.labels
    batches = [
        Batch(
            feeds={
                "sample": found.samples[b, share.start : share.stop],
                "timestep": np.full(len(share), record.timesteps[b]),
                **{name: value[share.start : share.stop] for name, value in every.items()},
            },
            buckets=np.full(len(share), b, np.int64),
            kind="step",
        )
        for b in range(steps)
        for share in shares
    ]
    return batches, f"{images} trajectories of the float model by DDIM, seed {own}"


def _calibration_seed(record: Record) -> int:
    options = record.provenance.get("options")
    seed = options.get("seed") if isinstance(options, Mapping) else None
    return seed if isinstance(seed, int) else 0


def _output_bytes(module: torch.nn.Module, call: Call) -> int:
    """Of all layers' outputs for one sample."""
    return max(1, sum(4 * int(np.prod(site.output_shape[1:])) for site in quantizable_layers(module, call)))
