"""The calibration inputs that the options and the source ask for, whatever the denoiser is conditioned on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from dq_deploy.calibration import (
    FEATURE_TRAJECTORIES,
    CalibrationInputs,
    CalibrationSource,
    StepChoice,
    Trajectory,
    align_steps,
    choose_steps,
    collect_trajectory,
    features_of_run,
    normal_biased_weights,
    random_trajectory,
    recorded_inputs,
    rows_in_turn,
    sampling_timesteps,
)
from dq_deploy.errors import OptionError
from dq_deploy.methods.options import SharedOptions
from dq_deploy.methods.progress import Progress, ProgressCallback
from dq_deploy.models import (
    Denoiser,
    call_denoiser,
    input_specs,
    middle_of,
    quantizable_layers,
    random_conditions,
)
from dq_deploy.numerics.arrays import Array

BATCH_VALUES = 1 << 26
"""Values of the largest tensor in one batch of a float pass, which bounds the memory of all of them."""


def batch_of(denoiser: Denoiser, most: int) -> int:
    """Inputs at a time in a float pass: `most`, or fewer where the model's tensors are large."""
    sites = quantizable_layers(denoiser.module, denoiser.call)
    largest = max(int(np.prod(shape[1:])) for site in sites for shape in (site.input_shape, site.output_shape))
    return max(1, min(most, BATCH_VALUES // largest))


def collect_inputs(
    denoiser: Denoiser, options: SharedOptions, source: CalibrationSource, progress: ProgressCallback
) -> CalibrationInputs:
    """Calibration inputs by name, and where they came from.

    Raises:
        OptionError: they do not fit in memory, are too few, or steps cannot be chosen for such a source.
    """
    _check_choice(options, source)
    if source.kind == "latents":
        return _from_latents(options, source)
    choice = _choice_of_steps(denoiser, options, source)
    drawn, sampler = _drawn(denoiser, options, source, choice.trajectories if choice else options.samples, progress)
    words = _words_of_conditions(denoiser, options, source)
    count = drawn.samples.shape[1]
    if count < drawn.asked:
        note = f"{count} of {drawn.asked} calibration trajectories fit in a quarter of memory_gib"
        progress(Progress(stage="trajectory", done=count, total=count, note=note))
    if choice is None:
        inputs = drawn.flat()
    else:
        choice = choice.within(count)
        inputs = drawn.at(*choice.order(options.seed))
        words |= choice.as_provenance()
    provenance = {"inputs": len(inputs["step"]), "sampler": sampler, **words}
    return CalibrationInputs(inputs=inputs, timesteps=drawn.timesteps, provenance=provenance)


def _check_choice(options: SharedOptions, source: CalibrationSource) -> None:
    choice = options.calibration_choice
    if source.kind == "latents" and choice != "uniform":
        raise OptionError(
            f"calibration_choice is {choice} with recorded latents, expected uniform: a file brings its own steps; "
            'add `calibration_choice="uniform"`'
        )
    if source.kind == "random" and choice == "tdac":
        raise OptionError(
            'calibration_choice is tdac with `kind="random"`, expected trajectory: it compares the steps of a '
            'sampling run; add `calibration_choice="uniform"` or leave `kind` out'
        )


def _drawn(
    denoiser: Denoiser, options: SharedOptions, source: CalibrationSource, samples: int, progress: ProgressCallback
) -> tuple[Trajectory, str]:
    """So many trajectories, or fewer where memory does not hold them, and the sampler in words."""
    shared: dict[str, Any] = {
        "steps": options.steps,
        "samples": samples,
        "seed": options.seed,
        "labels": options.labels,
        "conditions": _conditions(denoiser, options, source, samples),
        "memory_gib": options.memory_gib / 4,
    }
    if source.kind == "random":
        drawn = random_trajectory(denoiser.scheduler_config, denoiser.config, **shared)
        return drawn, "none, unit normal noise at every timestep"
    drawn = collect_trajectory(
        denoiser.module,
        denoiser.scheduler_config,
        denoiser.config,
        batch=batch_of(denoiser, 32),
        denoise=partial(call_denoiser, denoiser.module),
        progress=lambda done, total: progress(Progress(stage="trajectory", done=done, total=total)),
        **shared,
    )
    silent = denoiser.scheduler_config is None
    return drawn, "ddim, eta 0" + (" with diffusers' defaults: the model has no scheduler" if silent else "")


def _choice_of_steps(denoiser: Denoiser, options: SharedOptions, source: CalibrationSource) -> StepChoice | None:
    """How many inputs each step gives; None where every trajectory gives one a step."""
    name = str(options.calibration_choice)
    if name == "uniform":
        return None
    steps = len(sampling_timesteps(denoiser.scheduler_config, options.steps))
    if name == "normal-biased":
        return choose_steps(name, normal_biased_weights(steps), samples=options.samples)
    choose_steps(name, np.ones(steps), samples=options.samples)  # too few samples are refused before anything runs
    middle = denoiser.module.get_submodule(middle_of(denoiser.module, denoiser.call))
    batch = min(FEATURE_TRAJECTORIES, options.samples, _features_that_fit(denoiser, options, steps))

    def run() -> None:
        few = replace(options, samples=batch)
        collect_trajectory(
            denoiser.module,
            denoiser.scheduler_config,
            denoiser.config,
            steps=options.steps,
            samples=batch,
            batch=batch,
            seed=options.seed,
            labels=options.labels,
            conditions=_conditions(denoiser, few, source, batch),
            denoise=partial(call_denoiser, denoiser.module),
            memory_gib=options.memory_gib / 4,
        )

    aligned = align_steps(features_of_run(middle, run), radius=options.tdac_radius)
    details = {
        "radius": options.tdac_radius,
        "diversity_weight": options.tdac_diversity,
        "mean_distance": aligned.mean_distance,
        "density": [int(d) for d in aligned.density],
        "diversity": [round(float(v), 3) for v in aligned.diversity],
    }
    weights = aligned.weights(options.tdac_diversity)
    return choose_steps(name, weights, samples=options.samples, details=details)


def _features_that_fit(denoiser: Denoiser, options: SharedOptions, steps: int) -> int:
    """Trajectories whose middle features, and as much again to compare them, fit in half of `memory_gib`.

    Their samples have a quarter of it, in which the calibration's own come later.
    """
    prefix = middle_of(denoiser.module, denoiser.call)
    sites = [s for s in quantizable_layers(denoiser.module, denoiser.call) if s.name.startswith(f"{prefix}.")]
    values = max(int(np.prod(site.input_shape)) for site in sites)
    return max(1, int(options.memory_gib * (1 << 30) / 2) // (4 * 4 * steps * values))


def _conditions(
    denoiser: Denoiser, options: SharedOptions, source: CalibrationSource, samples: int
) -> dict[str, Array]:
    """A row of each condition for each trajectory."""
    names = _condition_names(denoiser)
    if not names:
        return {}
    if source.conditions:
        return rows_in_turn(source.conditions, samples)
    drawn = random_conditions(denoiser.call, samples, np.random.default_rng(options.seed))
    return {name: drawn[name] for name in names}


def _condition_names(denoiser: Denoiser) -> list[str]:
    names = (spec.name for spec in input_specs(denoiser.call))
    return [name for name in names if name not in ("sample", "timestep", "class_labels")]


def _words_of_conditions(denoiser: Denoiser, options: SharedOptions, source: CalibrationSource) -> dict[str, Any]:
    """What the provenance says of the conditions."""
    if not _condition_names(denoiser):
        return {}
    if source.conditions:
        rows = len(next(iter(source.conditions.values())))
        used = f"{min(rows, options.samples)} recorded rows of {source.files.get('conditions', 'the caller')}"
        return {"conditions": used}
    return {"conditions": f"random normal embeddings, seed {options.seed}; no text was encoded"}


def _from_latents(options: SharedOptions, source: CalibrationSource) -> CalibrationInputs:
    inputs, timesteps = recorded_inputs(source.latents, memory_gib=options.memory_gib)
    provenance = {
        "inputs": len(inputs["step"]),
        "sampler": "none, recorded latents",
        "latents": source.files.get("latents", "the caller"),
    }
    return CalibrationInputs(inputs=inputs, timesteps=timesteps, provenance=provenance)
