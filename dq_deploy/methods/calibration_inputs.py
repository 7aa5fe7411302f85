"""The calibration inputs that the options and the source ask for, whatever the denoiser is conditioned on."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.calibration import (
    CalibrationInputs,
    CalibrationSource,
    Trajectory,
    collect_trajectory,
    random_trajectory,
    recorded_inputs,
    rows_in_turn,
)
from dq_deploy.methods.options import QuantizeOptions
from dq_deploy.methods.progress import Progress, ProgressCallback
from dq_deploy.models import Denoiser, call_denoiser, input_specs, quantizable_layers, random_conditions

BATCH_VALUES = 1 << 26
"""Values of the largest tensor in one batch of a float pass, which bounds the memory of all of them."""


def batch_of(denoiser: Denoiser, most: int) -> int:
    """Inputs at a time in a float pass: `most`, or fewer where the model's tensors are large."""
    sites = quantizable_layers(denoiser.module, denoiser.config)
    largest = max(int(np.prod(shape[1:])) for site in sites for shape in (site.input_shape, site.output_shape))
    return max(1, min(most, BATCH_VALUES // largest))


def collect_inputs(
    denoiser: Denoiser, options: QuantizeOptions, source: CalibrationSource, progress: ProgressCallback
) -> CalibrationInputs:
    """Calibration inputs by name, and where they came from."""
    if source.kind == "latents":
        return _from_latents(options, source)
    conditions, words = _conditions(denoiser, options, source)
    shared: dict[str, Any] = {
        "steps": options.steps,
        "samples": options.samples,
        "seed": options.seed,
        "labels": options.labels,
        "conditions": conditions,
        "memory_gib": options.memory_gib / 4,
    }
    if source.kind == "random":
        drawn = random_trajectory(denoiser.scheduler_config, denoiser.config, **shared)
        sampler = "none, unit normal noise at every timestep"
    else:
        drawn = collect_trajectory(
            denoiser.module,
            denoiser.scheduler_config,
            denoiser.config,
            batch=batch_of(denoiser, 32),
            denoise=partial(call_denoiser, denoiser.module),
            progress=lambda done, total: progress(Progress(stage="trajectory", done=done, total=total)),
            **shared,
        )
        sampler = "ddim, eta 0"
    _say_if_fewer(drawn, progress)
    inputs = drawn.flat()
    provenance = {"inputs": len(inputs["step"]), "sampler": sampler, **words}
    return CalibrationInputs(inputs=inputs, timesteps=drawn.timesteps, provenance=provenance)


def _conditions(
    denoiser: Denoiser, options: QuantizeOptions, source: CalibrationSource
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Rows for each trajectory, and the provenance's words about them."""
    specs = input_specs(denoiser.config)
    names = [spec.name for spec in specs if spec.name not in ("sample", "timestep", "class_labels")]
    if not names:
        return {}, {}
    if source.conditions:
        rows = len(next(iter(source.conditions.values())))
        words = f"{min(rows, options.samples)} recorded rows of {source.files.get('conditions', 'the caller')}"
        return rows_in_turn(source.conditions, options.samples), {"conditions": words}
    drawn = random_conditions(denoiser.config, options.samples, np.random.default_rng(options.seed))
    words = f"random normal embeddings, seed {options.seed}; no text was encoded"
    return {name: drawn[name] for name in names}, {"conditions": words}


def _say_if_fewer(drawn: Trajectory, progress: ProgressCallback) -> None:
    count = drawn.samples.shape[1]
    if count < drawn.asked:
        note = f"{count} of {drawn.asked} calibration trajectories fit in a quarter of memory_gib"
        progress(Progress(stage="trajectory", done=count, total=count, note=note))


def _from_latents(options: QuantizeOptions, source: CalibrationSource) -> CalibrationInputs:
    inputs, timesteps = recorded_inputs(source.latents, memory_gib=options.memory_gib)
    provenance = {
        "inputs": len(inputs["step"]),
        "sampler": "none, recorded latents",
        "latents": source.files.get("latents", "the caller"),
    }
    return CalibrationInputs(inputs=inputs, timesteps=timesteps, provenance=provenance)
