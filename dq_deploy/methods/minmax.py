"""The baseline: activation ranges from the least and greatest value seen, weight scales by L2.4 search."""

from __future__ import annotations

from collections.abc import Mapping

from dq_deploy.calibration import CalibrationSource
from dq_deploy.methods.options import MinmaxOptions, SharedOptions
from dq_deploy.methods.prepare.assembly import build_layer, build_record
from dq_deploy.methods.prepare.calibration_inputs import batch_of, collect_inputs
from dq_deploy.methods.prepare.preparation import Prepared, prepare
from dq_deploy.methods.progress import Progress, ProgressCallback, silent
from dq_deploy.methods.ranges.float_ranges import watch_outputs
from dq_deploy.methods.ranges.scales import quantized_weight
from dq_deploy.methods.ranges.step_ranges import LayerRanges, collect_ranges, steps_of
from dq_deploy.methods.weight_only import timesteps_alone, weight_only_history, weight_only_layers
from dq_deploy.models import Denoiser
from dq_deploy.record import Layer, Record


def initial_layers(
    prepared: Prepared,
    ranges: Mapping[str, LayerRanges],
    options: SharedOptions,
    *,
    search: bool,
    progress: ProgressCallback = silent,
) -> dict[str, Layer]:
    """Layers by ranges alone, without training.

    Args:
        prepared: the folded float model.
        ranges: of its layers.
        options: groups of steps, symmetric activations or not, zero points of weights or not, output tables or not.
        search: shrink activation ranges by L2.4 search.
        progress: called after each layer.
    """
    layers = {}
    total = sum(layer.weight.size for layer in prepared.layers.values())
    groups = options.groups_of_steps(steps_of(ranges))
    asymmetric = bool(options.asymmetric_weights)
    done = 0
    for name, layer in prepared.layers.items():
        layers[name] = build_layer(
            layer,
            tables=ranges[name].input_tables(
                layer, groups=groups, symmetric=options.symmetric_activations, search=search
            ),
            weights=[quantized_weight(w, layer.weight_bits, asymmetric=asymmetric) for w in layer.weight_parts()],
            bias=layer.bias,
            output=ranges[name].output_table(groups) if options.outputs else None,
            symmetric=options.symmetric_activations,
        )
        done += layer.weight.size
        progress(Progress(stage="weights", done=done, total=total))
    return layers


def quantize_minmax(
    denoiser: Denoiser, options: MinmaxOptions, source: CalibrationSource, progress: ProgressCallback
) -> Record:
    """Quantize by ranges, static or per step; see `dq_deploy.methods.quantize`.

    Where every layer is weight-only and no calibration inputs were given, none are drawn.
    """
    prepared = prepare(denoiser, options)
    light = weight_only_layers(prepared, options, progress)
    history = weight_only_history(prepared, options)
    if not prepared.layers and source.kind == "trajectory" and not source.conditions:
        steps = timesteps_alone(denoiser, options)
        return build_record(denoiser, prepared, {}, steps, options, history, float_ranges={}, weight_only=light)
    calibration = collect_inputs(denoiser, options, source, progress)
    with watch_outputs(prepared.module) as float_ranges:
        ranges = collect_ranges(
            prepared,
            calibration.inputs,
            steps=len(calibration.timesteps),
            batch=batch_of(denoiser, 64),
            progress=lambda done, total: progress(Progress(stage="ranges", done=done, total=total)),
        )
    layers = initial_layers(prepared, ranges, options, search=False, progress=progress)
    history = [{"stage": "ranges", "inputs": calibration.count}, *history]
    return build_record(
        denoiser, prepared, layers, calibration, options, history, float_ranges=float_ranges, weight_only=light
    )
