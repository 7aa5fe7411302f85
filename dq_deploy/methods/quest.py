"""QuEST (arXiv 2402.03666): a quantized model is finetuned where it matters, without data.

1. A quantized model: the record given, or one of its own with searched ranges, an activation quantizer a step, and
   weights rounded by block reconstruction (Q-Diffusion, arXiv 2302.04304, with AdaRound).
2. Stage `time-embedding`: the time projections of the residual blocks, with every layer's activation quantizers.
3. Stage `attention`: queries, keys, values, outputs and feed-forward layers, with every layer's activation quantizers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dq_deploy.methods.finetuning.in_stages import check_finetuning, finetuned, keep, kept
from dq_deploy.methods.finetuning.stages import stages_of
from dq_deploy.methods.options import QuestOptions, json_of_options
from dq_deploy.methods.prepare.assembly import provenance_of
from dq_deploy.methods.prepare.calibration_inputs import visited_timesteps
from dq_deploy.methods.prepare.initial_record import (
    check_timesteps,
    options_of_initial,
)
from dq_deploy.methods.prepare.preparation import prepare
from dq_deploy.methods.prepare.starting_point import inputs_of
from dq_deploy.methods.run import Run
from dq_deploy.methods.training.reconstruction import adaround_settings
from dq_deploy.methods.training.resume import state_of_run
from dq_deploy.methods.training.trained_record import trained_record
from dq_deploy.record import Record, content_sha256


def quantize_quest(run: Run, options: QuestOptions, init: Record | None) -> Record:
    """Finetune a record, or one made here, in two stages; see `dq_deploy.methods.quantize`."""
    denoiser = run.denoiser
    check_finetuning(run, options)
    if init is not None:
        options = options_of_initial(init, denoiser, options)
        if run.source.kind != "latents":
            check_timesteps(init, visited_timesteps(denoiser, options, run.source))
    stages_of((), options)  # parts left out that leave nothing to train on are refused before anything runs
    known = {} if init is None else {"initial record": content_sha256(init)}
    state = state_of_run(run, options, **known)
    record = kept(state, "start") if init is None else init
    if record is None:
        prepared = prepare(denoiser, options)
        settings = adaround_settings(options) if options.uses("reconstruction") else None
        made = trained_record(run, prepared, options, settings, state)
        record, calibration = made.record, made.calibration
        keep(state, "start", record)
    else:
        calibration = inputs_of(run, options, state)
    if init is not None:
        check_timesteps(init, calibration.timesteps)
        told = provenance_of(denoiser, calibration, options, [_begun(init)])
        scheduler = denoiser.scheduler_config or init.scheduler_config  # its inputs are those of this one
        record = replace(init, provenance=told, scheduler_config=scheduler)
    record = finetuned(run, options, calibration, state, record)
    # a run that goes on with lower rates begins with a record of the former ones
    return replace(record, provenance={**record.provenance, "options": json_of_options(options)})


def _begun(init: Record) -> dict[str, Any]:
    """What the history says of the record that was given."""
    told = init.provenance
    return {
        "stage": "initial record",
        "method": told.get("method", "unknown"),
        "content_sha256": content_sha256(init),
        "options": told.get("options", {}),
    }
