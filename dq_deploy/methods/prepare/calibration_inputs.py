"""The calibration inputs that the options and the source ask for, whatever the denoiser is conditioned on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dq_deploy.calibration import (
    FEATURE_TRAJECTORIES,
    CalibrationInputs,
    CalibrationSource,
    RandomInputs,
    RecordedInputs,
    SamplingRun,
    StepChoice,
    align_steps,
    choose_steps,
    features_by_step,
    labels_of,
    normal_biased_weights,
    random_inputs,
    recorded_inputs,
    rows_in_turn,
    run_of_denoiser,
    sampling_timesteps,
)
from dq_deploy.calibration.sharding import Workers
from dq_deploy.errors import ModelError, OptionError
from dq_deploy.methods.options import SharedOptions
from dq_deploy.methods.progress import Progress, ProgressCallback
from dq_deploy.models import Denoiser, condition_names, middle_of, quantizable_layers, random_conditions
from dq_deploy.numerics.arrays import F32, F64, Array
from dq_deploy.record import Call

BATCH_VALUES = 1 << 26
"""Values of the largest tensor in one batch of a float pass, which bounds the memory of all of them."""

RUN_BATCH = 32
"""Pictures at a time when a denoiser alone is sampled."""


def batch_of(denoiser: Denoiser, most: int) -> int:
    """Inputs at a time in a float pass: `most`, or fewer where the model's tensors are large."""
    return inputs_at_once(denoiser.module, denoiser.call, most)


def inputs_at_once(module: torch.nn.Module, call: Call, most: int) -> int:
    """As `batch_of`, for a module and its call."""
    sites = quantizable_layers(module, call)
    largest = max(int(np.prod(shape[1:])) for site in sites for shape in (site.input_shape, site.output_shape))
    return max(1, min(most, BATCH_VALUES // largest))


def sampling_run(
    denoiser: Denoiser, options: SharedOptions, source: CalibrationSource, *, samples: int, at_once: int | None = None
) -> SamplingRun:
    """The run that inputs are recorded from: of the user's pipeline, or of the denoiser alone.

    Args:
        denoiser: the float model.
        options: steps, seed, classes.
        source: the pipeline, or conditions.
        samples: pictures that may be drawn.
        at_once: pictures at a time of a denoiser alone; by default what its size allows.
    """
    if source.pipeline is not None:
        given = source.pipeline
        asked = replace(given.asked, steps=options.steps, seed=options.seed, count=samples)
        if given.takes_classes and asked.labels is None:
            chosen = labels_of(denoiser.call, options.labels, samples, options.seed)
            asked = replace(asked, labels=None if chosen is None else tuple(int(label) for label in chosen))
        elif options.labels:
            kind = type(given.pipeline).__name__
            why = "which the call names already" if asked.labels is not None else f"which {kind} does not take"
            raise OptionError(f"got `labels`, {why}; leave them out")
        return SamplingRun(given.pipeline, denoiser.module, denoiser.call, asked, device=options.device)
    return run_of_denoiser(
        denoiser.module,
        denoiser.scheduler_config,
        denoiser.call,
        steps=options.steps,
        samples=samples,
        seed=options.seed,
        labels=options.labels,
        conditions=_conditions(denoiser, options, source, samples),
        at_once=batch_of(denoiser, RUN_BATCH) if at_once is None else at_once,
        device=options.device,
    )


def visited_timesteps(denoiser: Denoiser, options: SharedOptions, source: CalibrationSource) -> F32:
    """Timesteps that calibration inputs of this source will be at: [T] float32, strictly increasing."""
    if source.kind == "trajectory":
        return sampling_run(denoiser, options, source, samples=1, at_once=1).visits().timesteps
    return sampling_timesteps(denoiser.scheduler_config, options.steps)


def step_influence(denoiser: Denoiser, options: SharedOptions, source: CalibrationSource) -> F64 | None:
    """How far a step moves the next sample for an error of one in the model's output: [T], index 0 the last step.

    Probed with the scheduler's own steps, without clipping. None for a file of inputs, which names no sampler, and
    where the steps cannot be probed.
    """
    if source.kind == "latents":
        return None
    try:
        return sampling_run(denoiser, options, source, samples=1, at_once=1).visits(influence=True).influence
    except (ModelError, OptionError):
        if source.kind == "random":  # a denoiser that cannot be sampled alone
            return None
        raise


def collect_inputs(
    denoiser: Denoiser, options: SharedOptions, source: CalibrationSource, progress: ProgressCallback
) -> CalibrationInputs:
    """Calibration inputs by name, and where they came from.

    Raises:
        OptionError: they do not fit in memory, are too few, or steps cannot be chosen for such a source.
    """
    found = collect_shared(denoiser, options, source, progress, Workers())
    assert found is not None
    return found


def collect_shared(
    denoiser: Denoiser, options: SharedOptions, source: CalibrationSource, progress: ProgressCallback, workers: Workers
) -> CalibrationInputs | None:
    """As `collect_inputs`, by several processes: all inputs in the first one, None in the others."""
    _check_choice(options, source)
    if source.kind == "latents":
        return _from_latents(options, source) if workers.is_first else None
    words = _words_of_conditions(denoiser, options, source)
    if source.kind == "random":
        choice = _choice_of_random(denoiser, options)
        drawn: RandomInputs | RecordedInputs | None = _random(denoiser, options, source, choice)
        sampler = "none, unit normal noise at every timestep"
    else:
        drawn, choice, sampler = _sampled(denoiser, options, source, progress, workers)
    if drawn is None or not workers.is_first:
        return None
    if drawn.pictures < drawn.asked:
        note = f"{drawn.pictures} of {drawn.asked} calibration trajectories fit in a quarter of memory_gib"
        if isinstance(drawn, RecordedInputs):
            note = f"{drawn.pictures} of {drawn.asked} calibration trajectories fit in memory_gib and on the disk"
        progress(Progress(stage="trajectory", done=drawn.pictures, total=drawn.pictures, note=note))
    if choice is None:
        inputs = drawn.flat()
    else:
        choice = choice.within(drawn.least)
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
    if source.kind == "random" and choice in ("tdac", "influence"):
        raise OptionError(
            f'calibration_choice is {choice} with `kind="random"`, expected trajectory: it looks at the steps of a '
            'sampling run; add `calibration_choice="uniform"` or leave `kind` out'
        )


def _random(
    denoiser: Denoiser, options: SharedOptions, source: CalibrationSource, choice: StepChoice | None
) -> RandomInputs:
    samples = options.samples if choice is None else choice.trajectories
    return random_inputs(
        denoiser.scheduler_config,
        denoiser.call,
        steps=options.steps,
        samples=samples,
        seed=options.seed,
        labels=options.labels,
        conditions=_conditions(denoiser, options, source, samples),
        memory_gib=options.memory_gib / 4,
    )


def _choice_of_random(denoiser: Denoiser, options: SharedOptions) -> StepChoice | None:
    name = str(options.calibration_choice)
    if name == "uniform":
        return None
    steps = len(sampling_timesteps(denoiser.scheduler_config, options.steps))
    return choose_steps(name, normal_biased_weights(steps), samples=options.samples)


def _sampled(
    denoiser: Denoiser, options: SharedOptions, source: CalibrationSource, progress: ProgressCallback, workers: Workers
) -> tuple[RecordedInputs | None, StepChoice | None, str]:
    """Inputs of so many pictures, or fewer where they do not fit; which steps they are of; the sampler in words."""
    choice, pictures = None, options.samples
    if options.calibration_choice != "uniform":
        visits = sampling_run(denoiser, options, source, samples=1, at_once=1).visits()
        each = int(visits.rows.min())  # inputs of one picture at every step: two with guidance
        choice = workers.first(lambda: _choice_of_steps(denoiser, options, source, len(visits.timesteps), each))
        pictures = -(-choice.trajectories // each)
    run = sampling_run(denoiser, options, source, samples=pictures)
    found = run.record_shared(
        pictures,
        workers,
        memory_gib=options.memory_gib / 4,
        progress=lambda done, total: progress(Progress(stage="trajectory", done=done, total=total)),
    )
    return found, choice, f"{run.scheduler} of {run.kind}"


def _choice_of_steps(
    denoiser: Denoiser, options: SharedOptions, source: CalibrationSource, steps: int, each: int
) -> StepChoice:
    """How many inputs each step gives, `each` a picture on average."""
    name, samples = str(options.calibration_choice), options.samples * each
    if name == "normal-biased":
        return choose_steps(name, normal_biased_weights(steps), samples=samples)
    if name == "influence":
        influence = step_influence(denoiser, options, source)
        if influence is None or len(influence) != steps:
            raise OptionError(
                "calibration_choice is influence, expected a scheduler whose steps can be probed; use uniform"
            )
        return choose_steps(name, influence, samples=samples)
    choose_steps(name, np.ones(steps), samples=samples)  # too few samples are refused before anything runs
    middle = denoiser.module.get_submodule(middle_of(denoiser.module, denoiser.call))
    batch = min(FEATURE_TRAJECTORIES, options.samples, _features_that_fit(denoiser, options, steps))
    run = sampling_run(denoiser, replace(options, samples=batch), source, samples=batch, at_once=batch)
    aligned = align_steps(features_by_step(run, middle, batch), radius=options.tdac_radius)
    details = {
        "radius": options.tdac_radius,
        "diversity_weight": options.tdac_diversity,
        "mean_distance": aligned.mean_distance,
        "density": [int(d) for d in aligned.density],
        "diversity": [round(float(v), 3) for v in aligned.diversity],
    }
    weights = aligned.weights(options.tdac_diversity)
    return choose_steps(name, weights, samples=samples, details=details)


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
    names = condition_names(denoiser.call)
    if not names:
        return {}
    if source.conditions:
        return rows_in_turn(source.conditions, samples)
    drawn = random_conditions(denoiser.call, samples, np.random.default_rng(options.seed))
    return {name: drawn[name] for name in names}


def _words_of_conditions(denoiser: Denoiser, options: SharedOptions, source: CalibrationSource) -> dict[str, Any]:
    """What the provenance says of the pipeline, or of the conditions."""
    if source.pipeline is not None:
        return dict(source.pipeline.words)
    if not condition_names(denoiser.call):
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
