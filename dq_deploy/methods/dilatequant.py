"""DilateQuant (arXiv 2409.14307): weight dilation, the temporal parallel quantizer, block-wise distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dq_deploy.methods.assembly import build_record, versions
from dq_deploy.methods.block_reconstruction import Distiller
from dq_deploy.methods.minmax import collect_inputs, initial_layers
from dq_deploy.methods.options import QuantizeOptions
from dq_deploy.methods.preparation import prepare
from dq_deploy.methods.progress import Progress, ProgressCallback
from dq_deploy.methods.ranges import collect_ranges
from dq_deploy.methods.resume import ResumeFolder
from dq_deploy.models import Denoiser
from dq_deploy.record import Record


def quantize_dilatequant(
    denoiser: Denoiser, options: QuantizeOptions, progress: ProgressCallback, resume_dir: Path | None
) -> Record:
    """Dilate, calibrate, then train block by block; see `dq_deploy.methods.quantize`.

    Folds come first, then ranges, then training: what is calibrated is the model that will run.
    """
    prepared = prepare(denoiser, options, dilate=options.weight_dilation)
    state = None
    if resume_dir is not None:
        identity = {
            "source_sha256": denoiser.source_sha256,
            "options": options.as_json(),
            "versions": versions(),
        }
        state = ResumeFolder(resume_dir, identity)
    trajectory = state.load_trajectory() if state else None
    if trajectory is None:
        trajectory = collect_inputs(denoiser, options, progress)
        if state:
            state.save_trajectory(trajectory)
    inputs = trajectory.flat()
    ranges = collect_ranges(
        prepared,
        inputs,
        steps=len(trajectory.timesteps),
        draw_values=True,
        seed=options.seed,
        progress=lambda done, total: progress(Progress(stage="ranges", done=done, total=total)),
    )
    layers = initial_layers(prepared, ranges, options, search=True)
    history: list[dict[str, Any]] = [{"stage": "ranges", "inputs": len(inputs["step"])}]
    if options.distillation:
        distilled = Distiller(prepared, layers, ranges, inputs, options, progress).run(state)
        layers = distilled.layers
        history += distilled.history
    return build_record(denoiser, prepared, layers, trajectory, options, history)
