"""Where training begins: calibration inputs, ranges of the float model, and integer layers by search alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dq_deploy.calibration import CalibrationInputs, CalibrationSource
from dq_deploy.methods.minmax import initial_layers
from dq_deploy.methods.options import SharedOptions
from dq_deploy.methods.prepare.calibration_inputs import batch_of, collect_inputs
from dq_deploy.methods.prepare.preparation import Prepared
from dq_deploy.methods.progress import Progress, ProgressCallback
from dq_deploy.methods.ranges.float_ranges import watch_outputs
from dq_deploy.methods.ranges.step_ranges import LayerRanges, collect_ranges
from dq_deploy.methods.training.resume import ResumeFolder
from dq_deploy.models import Denoiser
from dq_deploy.record import Layer


@dataclass(frozen=True, kw_only=True, eq=False)
class StartingPoint:
    """What a method that trains begins with.

    Attributes:
        calibration: inputs of the float model.
        ranges: of its layers.
        float_ranges: largest |output| of each of its modules.
        layers: untrained integer layers, weights rounded to nearest.
        history: what happened so far, JSON values.
    """

    calibration: CalibrationInputs
    ranges: Mapping[str, LayerRanges]
    float_ranges: Mapping[str, float]
    layers: dict[str, Layer]
    history: list[dict[str, Any]]


def inputs_of(
    denoiser: Denoiser,
    options: SharedOptions,
    source: CalibrationSource,
    progress: ProgressCallback,
    state: ResumeFolder | None,
) -> CalibrationInputs:
    """Calibration inputs, from the state of an earlier run where it has them."""
    found = state.load_inputs() if state else None
    if found is not None:
        return found
    calibration = collect_inputs(denoiser, options, source, progress)
    if state:
        state.save_inputs(calibration)
    return calibration


def starting_point(
    denoiser: Denoiser,
    prepared: Prepared,
    options: SharedOptions,
    source: CalibrationSource,
    progress: ProgressCallback,
    state: ResumeFolder | None,
) -> StartingPoint:
    """Calibrate what `prepare` gave: ranges by L2.4 search, weight scales likewise."""
    calibration = inputs_of(denoiser, options, source, progress, state)
    with watch_outputs(prepared.module) as float_ranges:
        ranges = collect_ranges(
            prepared,
            calibration.inputs,
            steps=len(calibration.timesteps),
            draw_values=True,
            seed=options.seed,
            batch=batch_of(denoiser, 64),
            progress=lambda done, total: progress(Progress(stage="ranges", done=done, total=total)),
        )
    return StartingPoint(
        calibration=calibration,
        ranges=ranges,
        float_ranges=float_ranges,
        layers=initial_layers(prepared, ranges, options, search=True, progress=progress),
        history=[{"stage": "ranges", "inputs": calibration.count}],
    )
