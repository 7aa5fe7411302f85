"""The baseline: activation ranges from the least and greatest value seen, weight scales by L2.4 search."""

from __future__ import annotations

from dq_deploy.methods.options import MinmaxOptions
from dq_deploy.methods.prepare.assembly import build_record
from dq_deploy.methods.prepare.initial_layers import initial_layers
from dq_deploy.methods.prepare.preparation import prepare
from dq_deploy.methods.prepare.starting_point import inputs_of
from dq_deploy.methods.ranges.measured_ranges import measure_ranges
from dq_deploy.methods.run import Run
from dq_deploy.methods.scaling.range_scaling import with_channel_scales
from dq_deploy.methods.training.resume import state_of_run
from dq_deploy.methods.weight_only import timesteps_alone, weight_only_history, weight_only_layers
from dq_deploy.record import Record


def quantize_minmax(run: Run, options: MinmaxOptions) -> Record:
    """Quantize by ranges, static or per step; see `dq_deploy.methods.quantize`.

    What a stopped run keeps is its calibration inputs.

    Where every layer is weight-only and no calibration inputs were given, none are drawn.
    """
    denoiser, source = run.denoiser, run.source
    prepared = prepare(denoiser, options)
    light = weight_only_layers(prepared, options, run.progress, run.workers)
    history = weight_only_history(prepared, options)
    if not prepared.layers and source.kind == "trajectory" and not source.conditions:
        steps = timesteps_alone(denoiser, options, source)
        return build_record(denoiser, prepared, {}, steps, options, history, float_ranges={}, weight_only=light)
    calibration = inputs_of(run, options, state_of_run(run, options))
    if options.channel_scales:
        scaled = with_channel_scales(run, prepared, calibration, options)
        prepared, history = scaled.prepared, [*history, scaled.history]
    ranges = measure_ranges(run, prepared, calibration)
    layers = initial_layers(prepared, ranges.layers, options, search=False, progress=run.progress, workers=run.workers)
    history = [{"stage": "ranges", "inputs": calibration.count}, *history]
    return build_record(
        denoiser, prepared, layers, calibration, options, history, float_ranges=ranges.modules, weight_only=light
    )
