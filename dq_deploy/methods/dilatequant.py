"""DilateQuant (arXiv 2409.14307): weight dilation, the temporal parallel quantizer, block-wise distillation."""

from __future__ import annotations

from pathlib import Path

from dq_deploy.calibration import CalibrationSource
from dq_deploy.methods.options import DilateQuantOptions
from dq_deploy.methods.prepare.assembly import build_record
from dq_deploy.methods.prepare.preparation import prepare
from dq_deploy.methods.prepare.starting_point import starting_point
from dq_deploy.methods.progress import ProgressCallback
from dq_deploy.methods.training.block_reconstruction import BlockReconstruction
from dq_deploy.methods.training.reconstruction import bkd_settings
from dq_deploy.methods.training.resume import state_of_run
from dq_deploy.models import Denoiser
from dq_deploy.record import Record


def quantize_dilatequant(
    denoiser: Denoiser,
    options: DilateQuantOptions,
    source: CalibrationSource,
    progress: ProgressCallback,
    resume_dir: Path | None,
) -> Record:
    """Dilate, calibrate, then train block by block; see `dq_deploy.methods.quantize`.

    Folds come first, then ranges, then training: what is calibrated is the model that will run. Without part
    `temporal-quantizer` all steps share one activation quantizer.
    """
    bound = options.dilation_bound if options.uses("weight-dilation") else None
    prepared = prepare(denoiser, options, dilation_bound=bound)
    state = state_of_run(resume_dir, denoiser, options, source)
    start = starting_point(denoiser, prepared, options, source, progress, state)
    layers, history = start.layers, start.history
    if options.uses("distillation"):
        inputs, settings = start.calibration.inputs, bkd_settings(options)
        trained = BlockReconstruction(prepared, layers, start.ranges, inputs, options, settings, progress).run(state)
        layers, history = trained.layers, history + trained.history
    return build_record(
        denoiser, prepared, layers, start.calibration, options, history, float_ranges=start.float_ranges
    )
