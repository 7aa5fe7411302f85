"""Where training begins: calibration inputs, ranges of the float model, and integer layers by search alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dq_deploy.calibration import CalibrationInputs
from dq_deploy.calibration.sharding.rows import handed_out
from dq_deploy.methods.blocks.storage import GIB
from dq_deploy.methods.options import SharedOptions
from dq_deploy.methods.prepare.calibration_inputs import collect_shared
from dq_deploy.methods.prepare.initial_layers import initial_layers
from dq_deploy.methods.prepare.preparation import Prepared
from dq_deploy.methods.ranges.measured_ranges import MeasuredRanges, measure_ranges
from dq_deploy.methods.run import Run
from dq_deploy.methods.scaling.range_scaling import with_channel_scales
from dq_deploy.methods.training.resume import ResumeFolder
from dq_deploy.record import Layer


@dataclass(frozen=True, kw_only=True, eq=False)
class StartingPoint:
    """What a method that trains begins with.

    Attributes:
        prepared: the float model, with channel scales where they were asked for.
        calibration: inputs of the float model.
        ranges: of its layers and modules.
        layers: untrained integer layers, weights rounded to nearest.
        history: what happened so far, JSON values.
    """

    prepared: Prepared
    calibration: CalibrationInputs
    ranges: MeasuredRanges
    layers: dict[str, Layer]
    history: list[dict[str, Any]]


def inputs_of(run: Run, options: SharedOptions, state: ResumeFolder | None) -> CalibrationInputs:
    """Calibration inputs, from the state of an earlier run where it has them."""
    workers = run.workers
    whole = state.load_inputs() if state and workers.is_first else None
    if not workers.first(lambda: whole is not None):
        whole = collect_shared(run.denoiser, options, run.source, run.progress, workers)
        if state and whole is not None:  # the first process has them
            state.save_inputs(whole)
    return handed_out(workers, whole, limit_bytes=options.memory_gib / 4 * GIB)


def starting_point(
    run: Run, prepared: Prepared, options: SharedOptions, state: ResumeFolder | None, *, channel_scales: bool = False
) -> StartingPoint:
    """Calibrate what `prepare` gave: ranges by L2.4 search, weight scales likewise.

    Args:
        run: the float model and its calibration.
        prepared: its layers.
        options: of the method.
        state: of the run, where one is kept.
        channel_scales: each input channel gets a factor from its range first; `pre` is one everywhere.
    """
    calibration = inputs_of(run, options, state)
    history: list[dict[str, Any]] = []
    if channel_scales:
        scaled = with_channel_scales(run, prepared, calibration, options)
        prepared, history = scaled.prepared, [scaled.history]
    ranges = measure_ranges(run, prepared, calibration, draw_values=True, seed=options.seed)
    return StartingPoint(
        prepared=prepared,
        calibration=calibration,
        ranges=ranges,
        layers=initial_layers(
            prepared, ranges.layers, options, search=True, progress=run.progress, workers=run.workers
        ),
        history=[*history, {"stage": "ranges", "inputs": calibration.count}],
    )
