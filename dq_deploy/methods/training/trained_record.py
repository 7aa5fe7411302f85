"""The way that several methods go: calibrate, search ranges, train block by block, write the record."""

from __future__ import annotations

from dataclasses import dataclass

from dq_deploy.calibration import CalibrationInputs
from dq_deploy.methods.options import SharedOptions
from dq_deploy.methods.prepare.assembly import build_record
from dq_deploy.methods.prepare.preparation import Prepared
from dq_deploy.methods.prepare.starting_point import starting_point
from dq_deploy.methods.run import Run
from dq_deploy.methods.training.block_reconstruction import BlockReconstruction
from dq_deploy.methods.training.reconstruction import Reconstruction
from dq_deploy.methods.training.resume import ResumeFolder
from dq_deploy.record import Record


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedRecord:
    """A record and the calibration inputs it was made with."""

    record: Record
    calibration: CalibrationInputs


def trained_record(
    run: Run,
    prepared: Prepared,
    options: SharedOptions,
    settings: Reconstruction | None,
    state: ResumeFolder | None,
    *,
    channel_scales: bool = False,
) -> TrainedRecord:
    """A record of prepared layers; what is calibrated is the model that will run, folds included.

    Args:
        run: the float model and its calibration.
        prepared: its layers.
        options: of the method.
        settings: how blocks are trained, or None: then their layers are those of the range search.
        state: of the run, where one is kept.
        channel_scales: each input channel gets a factor from its range first.

    Raises:
        NonFiniteError: the float model or the training gives NaN or infinity.
    """
    start = starting_point(run, prepared, options, state, channel_scales=channel_scales)
    prepared = start.prepared
    layers, history, calibration = start.layers, start.history, start.calibration
    if settings is not None:
        blocks = BlockReconstruction(
            prepared,
            layers,
            start.ranges.layers,
            calibration.inputs,
            options,
            settings,
            run.progress,
            share=calibration.share,
        )
        trained = blocks.run(state)
        layers, history = trained.layers, history + trained.history
    record = build_record(
        run.denoiser, prepared, layers, calibration, options, history, float_ranges=start.ranges.modules
    )
    return TrainedRecord(record=record, calibration=calibration)
