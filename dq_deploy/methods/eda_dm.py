"""EDA-DM (arXiv 2401.04585): calibration samples by distribution alignment, then fine-grained block reconstruction."""

from __future__ import annotations

from pathlib import Path

from dq_deploy.calibration import CalibrationSource
from dq_deploy.methods.options import EdaDmOptions
from dq_deploy.methods.prepare.assembly import build_record
from dq_deploy.methods.prepare.preparation import prepare
from dq_deploy.methods.prepare.starting_point import starting_point
from dq_deploy.methods.progress import ProgressCallback
from dq_deploy.methods.training.block_reconstruction import BlockReconstruction
from dq_deploy.methods.training.reconstruction import fbr_settings
from dq_deploy.methods.training.resume import state_of_run
from dq_deploy.models import Denoiser
from dq_deploy.record import Record


def quantize_eda_dm(
    denoiser: Denoiser,
    options: EdaDmOptions,
    source: CalibrationSource,
    progress: ProgressCallback,
    resume_dir: Path | None,
) -> Record:
    """Calibrate on the steps that stand for all, then reconstruct; see `dq_deploy.methods.quantize`.

    1. TDAC: the calibration inputs come from steps by the density and diversity of their features, which is what
       `calibration_choice` is by default here.
    2. Activation quantizers are static, one for all steps, found by search; skip concatenations are split.
    3. FBR: AdaRound and the activation scales are trained a block at a time, on the error of the block's output and
       of the layers inside, with half of the activation quantization dropped.
    """
    prepared = prepare(denoiser, options)
    state = state_of_run(resume_dir, denoiser, options, source)
    start = starting_point(denoiser, prepared, options, source, progress, state)
    layers, history = start.layers, start.history
    if options.uses("reconstruction"):
        inputs, settings = start.calibration.inputs, fbr_settings(options)
        trained = BlockReconstruction(prepared, layers, start.ranges, inputs, options, settings, progress).run(state)
        layers, history = trained.layers, history + trained.history
    return build_record(
        denoiser, prepared, layers, start.calibration, options, history, float_ranges=start.float_ranges
    )
