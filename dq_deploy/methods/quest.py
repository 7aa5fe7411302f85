"""QuEST (arXiv 2402.03666): a quantized model is finetuned where it matters, without data.

1. A quantized model: the record given, or one of its own with searched ranges, an activation quantizer a step, and
   weights rounded by block reconstruction (Q-Diffusion, arXiv 2302.04304, with AdaRound).
2. Stage `time-embedding`: the time projections of the residual blocks, with every layer's activation quantizers.
3. Stage `attention`: queries, keys, values, outputs and feed-forward layers, with every layer's activation quantizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dq_deploy.calibration import CalibrationInputs
from dq_deploy.errors import NonFiniteError
from dq_deploy.methods.options import QuestOptions, json_of_options
from dq_deploy.methods.prepare.assembly import provenance_of
from dq_deploy.methods.prepare.calibration_inputs import batch_of, step_influence, visited_timesteps
from dq_deploy.methods.prepare.initial_record import (
    check_timesteps,
    groups_of_record,
    initial_state,
    options_of_initial,
)
from dq_deploy.methods.prepare.preparation import prepare
from dq_deploy.methods.prepare.starting_point import inputs_of
from dq_deploy.methods.ranges.measured_ranges import FLOAT_BATCH
from dq_deploy.methods.ranges.step_ranges import StepRange, batches, model_inputs, output_table, watch_steps
from dq_deploy.methods.run import Run
from dq_deploy.methods.finetuning.finetuner import Finetuner, stages_of
from dq_deploy.methods.training.reconstruction import adaround_settings
from dq_deploy.methods.training.resume import ResumeFolder, state_of_run
from dq_deploy.methods.training.trained_record import trained_record
from dq_deploy.models import call_denoiser, call_of_record
from dq_deploy.numerics.arrays import I64
from dq_deploy.record import Layer, Record, content_sha256, load_record, save_record
from dq_deploy.simulation.fake_quant import simulate


def quantize_quest(run: Run, options: QuestOptions, init: Record | None) -> Record:
    """Finetune a record, or one made here, in two stages; see `dq_deploy.methods.quantize`."""
    denoiser = run.denoiser
    if init is not None:
        options = options_of_initial(init, denoiser, options)
        if run.source.kind != "latents":
            check_timesteps(init, visited_timesteps(denoiser, options, run.source))
    stages_of((), options)  # parts left out that leave nothing to train on are refused before anything runs
    known = {} if init is None else {"initial record": content_sha256(init)}
    state = state_of_run(run, options, **known)
    record = _kept(state, "start") if init is None else init
    if record is None:
        prepared = prepare(denoiser, options)
        settings = adaround_settings(options) if options.uses("reconstruction") else None
        made = trained_record(run, prepared, options, settings, state)
        record, calibration = made.record, made.calibration
        _keep(state, "start", record)
    else:
        calibration = inputs_of(run, options, state)
    if init is not None:
        check_timesteps(init, calibration.timesteps)
        record = replace(init, provenance=provenance_of(denoiser, calibration, options, [_begun(init)]))
    record = _finetuned(run, options, calibration, state, record)
    # a run that goes on with lower rates begins with a record of the former ones
    return replace(record, provenance={**record.provenance, "options": json_of_options(options)})


def _finetuned(
    run: Run, options: QuestOptions, calibration: CalibrationInputs, state: ResumeFolder | None, record: Record
) -> Record:
    """Every stage in turn, then output tables; a finished stage is kept as a record of its own."""
    denoiser = run.denoiser
    stages = stages_of(initial_state(record, denoiser).layers, options)
    finetuner: Finetuner | None = None
    last, kept_start = "start", True
    for number, stage in enumerate(stages):
        done = _kept(state, stage.name)
        if done is None:
            finetuner = finetuner or _finetuner(run, options, calibration, len(stages))
            try:
                done, note = finetuner.run(stage, number, record)
            except NonFiniteError as error:
                raise _named(error, state, stage.name, last) from error
            done = _with_note(done, note)
            _keep(state, stage.name, done)
        kept_start = kept_start and done.provenance["history"][-1]["kept"] == "start"
        record, last = done, stage.name
    has_tables = all(layer.out_scale is not None for layer in record.layers.values())
    if kept_start and has_tables == options.outputs:
        return record  # bit for bit what it began with
    finished: Record = _with_output_tables(record, calibration, options, batch_of(denoiser, FLOAT_BATCH))
    return finished


def _finetuner(run: Run, options: QuestOptions, calibration: CalibrationInputs, stages: int) -> Finetuner:
    """What trains the stages; recorded inputs name no sampler, and so no influence of their steps."""
    influence = None if run.source.kind == "latents" else step_influence(run.denoiser, options, run.source)
    return Finetuner(run.denoiser, calibration.inputs, options, run.progress, stages=stages, influence=influence)


def _named(error: NonFiniteError, state: ResumeFolder | None, stage: str, last: str) -> NonFiniteError:
    """The error of a diverged stage, with where the state before it is."""
    kept = _path(state, last)
    if state is None or kept is None:
        return error
    state.note_divergence(stage)
    if not kept.exists():
        return error
    return NonFiniteError(
        f"{error}; the state before it is a record, {kept}: run again with lower rates to go on from there"
    )


def _begun(init: Record) -> dict[str, Any]:
    """What the history says of the record that was given."""
    told = init.provenance
    return {
        "stage": "initial record",
        "method": told.get("method", "unknown"),
        "content_sha256": content_sha256(init),
        "options": told.get("options", {}),
    }


def _with_note(record: Record, note: Mapping[str, Any]) -> Record:
    history = [*record.provenance["history"], dict(note)]
    return replace(record, provenance={**record.provenance, "history": history})


def _path(state: ResumeFolder | None, name: str) -> Path | None:
    """Where a stage's record is kept, among the files that belong to the state."""
    return None if state is None else state.folder / f"block-{name}.record.safetensors"


def _kept(state: ResumeFolder | None, name: str) -> Record | None:
    path = _path(state, name)
    return None if path is None or not path.exists() else load_record(path)


def _keep(state: ResumeFolder | None, name: str, record: Record) -> None:
    path = _path(state, name)
    if path is not None and not path.exists():
        save_record(record, path)


@torch.no_grad()
def _with_output_tables(record: Record, calibration: CalibrationInputs, options: QuestOptions, batch: int) -> Record:
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
