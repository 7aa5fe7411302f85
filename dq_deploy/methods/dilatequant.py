"""DilateQuant (arXiv 2409.14307): weight dilation, the temporal parallel quantizer, block-wise distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dq_deploy.calibration import CalibrationSource
from dq_deploy.methods.assembly import build_record, versions
from dq_deploy.methods.block_reconstruction import BlockReconstruction
from dq_deploy.methods.calibration_inputs import batch_of, collect_inputs
from dq_deploy.methods.float_ranges import watch_outputs
from dq_deploy.methods.minmax import initial_layers
from dq_deploy.methods.options import QuantizeOptions
from dq_deploy.methods.preparation import prepare
from dq_deploy.methods.progress import Progress, ProgressCallback
from dq_deploy.methods.ranges import collect_ranges
from dq_deploy.methods.reconstruction import bkd_settings
from dq_deploy.methods.resume import ResumeFolder
from dq_deploy.models import Denoiser
from dq_deploy.record import Record


def quantize_dilatequant(
    denoiser: Denoiser,
    options: QuantizeOptions,
    source: CalibrationSource,
    progress: ProgressCallback,
    resume_dir: Path | None,
) -> Record:
    """Dilate, calibrate, then train block by block; see `dq_deploy.methods.quantize`.

    Folds come first, then ranges, then training: what is calibrated is the model that will run.
    """
    prepared = prepare(denoiser, options, dilate=options.uses("weight-dilation"))
    state = None
    if resume_dir is not None:
        identity: dict[str, Any] = {
            "source_sha256": denoiser.source_sha256,
            "options": options.as_json(),
            "versions": versions(),
        }
        if source.kind != "trajectory" or source.files:
            identity["calibration"] = {"kind": source.kind, **source.files}
        state = ResumeFolder(resume_dir, identity)
    calibration = state.load_inputs() if state else None
    if calibration is None:
        calibration = collect_inputs(denoiser, options, source, progress)
        if state:
            state.save_inputs(calibration)
    inputs = calibration.inputs
    with watch_outputs(prepared.module) as float_ranges:
        ranges = collect_ranges(
            prepared,
            inputs,
            steps=len(calibration.timesteps),
            draw_values=True,
            seed=options.seed,
            batch=batch_of(denoiser, 64),
            progress=lambda done, total: progress(Progress(stage="ranges", done=done, total=total)),
        )
    layers = initial_layers(prepared, ranges, options, search=True, progress=progress)
    history: list[dict[str, Any]] = [{"stage": "ranges", "inputs": len(inputs["step"])}]
    if options.uses("distillation"):
        distilled = BlockReconstruction(prepared, layers, ranges, inputs, options, bkd_settings(options), progress).run(
            state
        )
        layers = distilled.layers
        history += distilled.history
    return build_record(denoiser, prepared, layers, calibration, options, history, float_ranges=float_ranges)
