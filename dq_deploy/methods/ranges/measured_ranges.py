"""One pass of the float model over the calibration inputs: ranges of its layers at each step, and of its modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from dq_deploy.calibration import CalibrationInputs
from dq_deploy.methods.prepare.calibration_inputs import batch_of
from dq_deploy.methods.prepare.preparation import Prepared
from dq_deploy.methods.ranges.float_ranges import watch_outputs
from dq_deploy.methods.ranges.step_ranges import LayerRanges, collect_ranges
from dq_deploy.methods.run import Run

FLOAT_BATCH = 64
"""Inputs at a time, or fewer where the model's tensors are large."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredRanges:
    """What one pass saw.

    Attributes:
        layers: ranges of each layer's input and output at each step.
        modules: largest |output| of each module.
    """

    layers: Mapping[str, LayerRanges]
    modules: Mapping[str, float]


def measure_ranges(
    run: Run,
    prepared: Prepared,
    calibration: CalibrationInputs,
    *,
    draw_values: bool = False,
    seed: int = 0,
    momentum: float | None = None,
) -> MeasuredRanges:
    """Run the float model once over all calibration inputs; the arguments are those of `collect_ranges`.

    Raises:
        NonFiniteError: a layer or a module gives NaN or infinity; names it.
    """
    with watch_outputs(prepared.module) as modules:
        layers = collect_ranges(
            prepared,
            calibration.inputs,
            steps=len(calibration.timesteps),
            draw_values=draw_values,
            seed=seed,
            batch=batch_of(run.denoiser, FLOAT_BATCH),
            momentum=momentum,
            progress=partial(run.tell, "ranges"),
        )
    return MeasuredRanges(layers=layers, modules=modules)
