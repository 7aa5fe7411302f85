"""DMQ (ICCV 2025): learned equivalent scaling with timestep weighting, AdaRound, power-of-two scaled skips."""

from __future__ import annotations

from typing import Any

from dq_deploy.calibration import CalibrationInputs
from dq_deploy.errors import NonFiniteError
from dq_deploy.methods.finetuning.in_stages import check_finetuning, finetuned_last
from dq_deploy.methods.options import DmqOptions
from dq_deploy.methods.prepare.assembly import build_record
from dq_deploy.methods.prepare.calibration_inputs import batch_of
from dq_deploy.methods.prepare.initial_layers import initial_layers
from dq_deploy.methods.prepare.preparation import Prepared, prepare, with_equivalent_scales
from dq_deploy.methods.prepare.starting_point import inputs_of
from dq_deploy.methods.ranges.measured_ranges import FLOAT_BATCH, measure_ranges
from dq_deploy.methods.run import Run
from dq_deploy.methods.scaling.equivalent_scaling import LearnedScales, learn_equivalent_scales
from dq_deploy.methods.scaling.power_of_two import scale_skips
from dq_deploy.methods.training.block_reconstruction import BlockReconstruction
from dq_deploy.methods.training.reconstruction import adaround_settings
from dq_deploy.methods.training.resume import ResumeFolder, state_of_run
from dq_deploy.record import Record

RANGE_MOMENTUM = 0.95
SCALES = "equivalent-scales"


def quantize_dmq(run: Run, options: DmqOptions) -> Record:
    """Scale, calibrate, round, then scale the skips; see `dq_deploy.methods.quantize`.

    1. Learned equivalent scaling: a factor an input channel, layer by layer, on the layer's own output error, each
       step weighted by how small its share of the loss is. Skip concatenations are split.
    2. Activation ranges a group of steps by an exponential mean over batches; asymmetric weights by range search.
    3. AdaRound, block by block, on the block's output error and the rounding penalty.
    4. Power-of-two factors of the 1x1 skip convolutions, by the votes of the calibration inputs.
    5. QuEST's finetuning, where `finetune` asks for it.
    """
    check_finetuning(run, options)
    prepared = prepare(run.denoiser, options)
    state = state_of_run(run, options)
    calibration = inputs_of(run, options, state)
    inputs, steps, batch = calibration.inputs, len(calibration.timesteps), batch_of(run.denoiser, FLOAT_BATCH)
    history: list[dict[str, Any]] = []
    if options.uses("learned-scaling"):
        learned = _learned_scales(run, prepared, calibration, options, batch, state)
        prepared = with_equivalent_scales(prepared, learned.factors)
        history.append(learned.history)
    ranges = measure_ranges(run, prepared, calibration, momentum=RANGE_MOMENTUM)
    history.append({"stage": "ranges", "inputs": calibration.count})
    layers = initial_layers(prepared, ranges.layers, options, search=False, progress=run.progress)
    if options.uses("reconstruction"):
        settings = adaround_settings(options)
        blocks = BlockReconstruction(prepared, layers, ranges.layers, inputs, options, settings, run.progress)
        trained = blocks.run(state)
        layers, history = trained.layers, history + trained.history
    if options.uses("power-of-two"):
        scaled = scale_skips(prepared, layers, inputs, options, steps=steps, batch=batch)
        layers = scaled.layers
        history.append(scaled.history)
    record = build_record(run.denoiser, prepared, layers, calibration, options, history, float_ranges=ranges.modules)
    return finetuned_last(run, options, calibration, state, record)


def _learned_scales(
    run: Run,
    prepared: Prepared,
    calibration: CalibrationInputs,
    options: DmqOptions,
    batch: int,
    state: ResumeFolder | None,
) -> LearnedScales:
    """The equivalent scales; layers that an earlier run of this state has learned are taken from it."""
    found = state.load_stage(SCALES) if state else None
    known = None if found is None else LearnedScales(factors=found[0], history=found[1])

    def keep(learned: LearnedScales) -> None:
        if state:
            state.save_stage(SCALES, learned.factors, learned.history)

    steps = len(calibration.timesteps)
    try:
        return learn_equivalent_scales(
            prepared,
            calibration.inputs,
            options,
            steps=steps,
            batch=batch,
            progress=run.progress,
            known=known,
            keep=keep,
        )
    except NonFiniteError as error:
        if state is None:
            raise
        state.note_divergence(SCALES)
        raise NonFiniteError(f"{error}; the layers before it are kept in {state.folder}") from error
