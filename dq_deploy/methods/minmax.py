"""The baseline: activation ranges from the least and greatest value seen, weight scales by L2.4 search."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dq_deploy.calibration import Trajectory, collect_trajectory
from dq_deploy.methods.assembly import build_layer, build_record
from dq_deploy.methods.options import QuantizeOptions
from dq_deploy.methods.preparation import Prepared, prepare
from dq_deploy.methods.progress import Progress, ProgressCallback
from dq_deploy.methods.ranges import LayerRanges, collect_ranges
from dq_deploy.methods.scales import search_weight_scale, weight_codes
from dq_deploy.models import Denoiser
from dq_deploy.record import Layer, Record


def collect_inputs(denoiser: Denoiser, options: QuantizeOptions, progress: ProgressCallback) -> Trajectory:
    """The calibration trajectory that the options ask for."""
    trajectory = collect_trajectory(
        denoiser.module,
        denoiser.scheduler_config,
        denoiser.config,
        steps=options.steps,
        samples=options.samples,
        seed=options.seed,
        labels=options.labels,
        memory_gib=options.memory_gib / 4,
        progress=lambda done, total: progress(Progress(stage="trajectory", done=done, total=total)),
    )
    count = trajectory.samples.shape[1]
    if count < trajectory.asked:
        note = f"{count} of {trajectory.asked} calibration trajectories fit in a quarter of memory_gib"
        progress(Progress(stage="trajectory", done=count, total=count, note=note))
    return trajectory


def initial_layers(
    prepared: Prepared, ranges: Mapping[str, LayerRanges], options: QuantizeOptions, *, search: bool
) -> dict[str, Layer]:
    """Layers by ranges alone, without training.

    Args:
        prepared: the folded float model.
        ranges: of its layers.
        options: static or per step, symmetric or not, output tables or not.
        search: shrink activation ranges by L2.4 search.
    """
    layers = {}
    for name, layer in prepared.layers.items():
        weights = []
        for weight in layer.weight_parts():
            scale = search_weight_scale(weight, layer.weight_bits)
            weights.append((weight_codes(weight, scale, layer.weight_bits), scale))
        layers[name] = build_layer(
            layer,
            tables=ranges[name].input_tables(
                layer, static=options.is_static, symmetric=options.symmetric_activations, search=search
            ),
            weights=weights,
            bias=layer.bias,
            output=ranges[name].output_table(static=options.is_static) if options.outputs else None,
            symmetric=options.symmetric_activations,
        )
    return layers


def quantize_minmax(denoiser: Denoiser, options: QuantizeOptions, progress: ProgressCallback) -> Record:
    """Quantize by ranges, static or per step; see `dq_deploy.methods.quantize`."""
    prepared = prepare(denoiser, options)
    trajectory = collect_inputs(denoiser, options, progress)
    inputs = trajectory.flat()
    ranges = collect_ranges(
        prepared,
        inputs,
        steps=len(trajectory.timesteps),
        progress=lambda done, total: progress(Progress(stage="ranges", done=done, total=total)),
    )
    layers = initial_layers(prepared, ranges, options, search=False)
    history = [{"stage": "ranges", "inputs": int(np.prod(trajectory.samples.shape[:2]))}]
    return build_record(denoiser, prepared, layers, trajectory, options, history)
