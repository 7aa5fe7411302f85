"""The stages of the finetuning in turn; a finished one is kept as a record, so that a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from dq_deploy.calibration import CalibrationInputs
from dq_deploy.errors import NonFiniteError
from dq_deploy.methods.finetuning.finetuner import Finetuner
from dq_deploy.methods.finetuning.own_trajectories import check_own_trajectories, own_inputs
from dq_deploy.methods.finetuning.picture_influence import picture_influence
from dq_deploy.methods.finetuning.stages import stages_of
from dq_deploy.methods.options import QuestOptions, SharedOptions, TrainingOptions, json_of_options
from dq_deploy.methods.prepare.calibration_inputs import batch_of, step_influence
from dq_deploy.methods.prepare.initial_record import groups_of_record, initial_state
from dq_deploy.methods.ranges.measured_ranges import FLOAT_BATCH
from dq_deploy.methods.ranges.step_ranges import StepRange, batches, model_inputs, output_table, watch_steps
from dq_deploy.methods.run import Run
from dq_deploy.methods.training.resume import ResumeFolder
from dq_deploy.models import call_denoiser, call_of_record
from dq_deploy.numerics.arrays import F64, I64
from dq_deploy.record import Layer, Record, load_record, save_record
from dq_deploy.simulation.fake_quant import simulate

LAST_STAGE_RATES = {
    "lr_weight": 2e-2,
    "lr_bias": 1e-2,
    "lr_weight_scale": 1e-3,
    "lr_scale": 2e-3,
    "lr_zero_point": 0.0,
}
"""Of the finetuning behind another method, whose own rates are of its blocks: those of `quest` in the presets."""


def check_finetuning(run: Run, options: TrainingOptions) -> None:
    """Refuse, before anything runs, what the finetuning cannot have.

    Raises:
        OptionError: names the option.
    """
    if options.own_trajectories:
        check_own_trajectories(run.source)
    if options.picture_weights:
        check_own_trajectories(run.source, option="picture_weights")


def finetuned_last(
    run: Run, options: TrainingOptions, calibration: CalibrationInputs, state: ResumeFolder | None, record: Record
) -> Record:
    """A method's record with QuEST's finetuning behind it, where the options ask for one.

    Args:
        run: the float model.
        options: of the method.
        calibration: what the method saw.
        state: of the run.
        record: by the method.

    Raises:
        NonFiniteError: a loss is NaN or infinite.
    """
    if not options.finetune:
        return record
    shared = {option.name: getattr(options, option.name) for option in fields(SharedOptions)}
    own = {name: getattr(options, name) for name in ("batch", "finetune_iterations", "own_trajectories")}
    shared |= {"without": (), "unused": {}, "budget": None, "activation_budget": None}
    asked = QuestOptions(**{**shared, **own, **LAST_STAGE_RATES, "picture_weights": options.picture_weights})
    keep(state, "start", record)
    found = finetuned(run, asked, calibration, state, record)
    return replace(found, provenance={**found.provenance, "options": json_of_options(options)})


def finetuned(
    run: Run, options: QuestOptions, calibration: CalibrationInputs, state: ResumeFolder | None, record: Record
) -> Record:
    """Every stage in turn, then output tables; a finished stage is kept as a record of its own."""
    denoiser = run.denoiser
    stages = stages_of(initial_state(record, denoiser).layers, options)
    finetuner: Finetuner | None = None
    start, weights = record, None
    last, kept_start = "start", True
    for number, stage in enumerate(stages):
        done = kept(state, stage.name)
        if done is None:
            if finetuner is None or options.own_trajectories:
                if weights is None and options.picture_weights:
                    weights = picture_influence(run, options, start)
                seen = own_inputs(run, options, record) if options.own_trajectories else calibration
                finetuner = _finetuner(run, options, seen, len(stages), weights)
            try:
                done, note = finetuner.run(stage, number, record)
            except NonFiniteError as error:
                raise _named(error, state, stage.name, last) from error
            trajectories = "quantized model" if options.own_trajectories else "float model"
            done = _with_note(done, {**note, "trajectories": trajectories, "picture_weights": options.picture_weights})
            keep(state, stage.name, done)
        kept_start = kept_start and done.provenance["history"][-1]["kept"] == "start"
        record, last = done, stage.name
    # a record that was read again has its words in the order of the file
    record = replace(record, provenance=json.loads(json.dumps(record.provenance, sort_keys=True)))
    has_tables = all(layer.out_scale is not None for layer in record.layers.values())
    if kept_start and has_tables == options.outputs:
        return record  # bit for bit what it began with
    finished: Record = with_output_tables(record, calibration, options, batch_of(denoiser, FLOAT_BATCH))
    return finished


def _finetuner(run: Run, options: QuestOptions, seen: CalibrationInputs, stages: int, weights: F64 | None) -> Finetuner:
    """What trains the stages; recorded inputs name no sampler, and so no influence of their steps."""
    influence = None if run.source.kind == "latents" else step_influence(run.denoiser, options, run.source)
    return Finetuner(
        run.denoiser, seen.inputs, options, run.progress, stages=stages, influence=influence, weights=weights
    )


def _named(error: NonFiniteError, state: ResumeFolder | None, stage: str, last: str) -> NonFiniteError:
    """The error of a diverged stage, with where the state before it is."""
    former = _path(state, last)
    if state is None or former is None:
        return error
    state.note_divergence(stage)
    if not former.exists():
        return error
    return NonFiniteError(
        f"{error}; the state before it is a record, {former}: run again with lower rates to go on from there"
    )


def _with_note(record: Record, note: Mapping[str, Any]) -> Record:
    history = [*record.provenance["history"], dict(note)]
    return replace(record, provenance={**record.provenance, "history": history})


def _path(state: ResumeFolder | None, name: str) -> Path | None:
    """Where a stage's record is kept, among the files that belong to the state."""
    return None if state is None else state.folder / f"block-{name}.record.safetensors"


def kept(state: ResumeFolder | None, name: str) -> Record | None:
    """The record that an earlier run ended a stage with, or None."""
    path = _path(state, name)
    return None if path is None or not path.exists() else load_record(path)


def keep(state: ResumeFolder | None, name: str, record: Record) -> None:
    """Keep the record that a stage ended with, where a state is kept."""
    path = _path(state, name)
    if path is not None and not path.exists():
        save_record(record, path)


@torch.no_grad()
def with_output_tables(record: Record, calibration: CalibrationInputs, options: SharedOptions, batch: int) -> Record:
    """The record with 8-bit output tables of what its integer layers now give, or with none."""
    if not options.outputs:
        return replace(record, layers={n: _with_table(layer, None) for n, layer in record.layers.items()})
    simulation = simulate(record).to(options.device)
    context = simulation.context
    step = torch.from_numpy(calibration.inputs["step"])
    with watch_steps(simulation.denoiser, record.layers, context, record.steps) as seen:
        for chosen in batches(len(step), batch):
            context.step = step[chosen]
            call_denoiser(simulation.denoiser, model_inputs(calibration.inputs, chosen, call_of_record(record)))
    groups = groups_of_record(record)
    layers = {name: _with_table(layer, seen[name], groups) for name, layer in record.layers.items()}
    return replace(record, layers=layers)


def _with_table(layer: Layer, seen: StepRange | None, groups: I64 | None = None) -> Layer:
    if seen is None or groups is None:
        return replace(layer, out_scale=None, out_zero_point=None)
    scale, zero = output_table(seen, groups)
    return replace(layer, out_scale=scale, out_zero_point=zero)
