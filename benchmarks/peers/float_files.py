"""The float model as a peer takes it: an ONNX file, and the sampler's numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

    from dq_deploy.models import Denoiser


def write_float_files(model_dir: Path, folder: Path, *, steps: int) -> list[str]:
    """Write `float.onnx` (dynamic batch, with a float timestep) and `schedule.json` into a folder.

    Returns:
        Names of the graph's products that stay float in our records, see `float_products`.
    """
    from dq_deploy import load_model

    denoiser = load_model(model_dir)
    graph = write_float_graph(denoiser, folder / "float.onnx")
    schedule = schedule_of(denoiser.scheduler_config, steps)
    (folder / "schedule.json").write_text(json.dumps(schedule), encoding="utf-8")
    return float_products(graph)


def write_float_graph(denoiser: Denoiser, path: Path, *, large: bool = False, vary: bool = False) -> ir.Model:
    """Write the float model as an ONNX file whose batch varies.

    Args:
        denoiser: the float model.
        path: to write.
        large: weights go into a file beside it.
        vary: not only the batch varies, but all sizes that the denoiser's call names.

    Returns:
        What was written.
    """
    import onnx_ir as ir

    from dq_deploy.graph.trace import trace
    from dq_deploy.models import denoiser_outputs, example_inputs

    shapes = {entry.name: entry.shape for entry in denoiser.call.inputs} if vary else None
    graph = trace(denoiser.module, example_inputs(denoiser.call, 2, 0), call=denoiser_outputs, shapes=shapes)
    ir.save(graph, str(path), external_data=f"{path.name}.data" if large else None)
    return graph


def float_products(model: ir.Model) -> list[str]:
    """Products that no record of ours has in integers by default: time embedding, and attention's two activations."""
    found = []
    for node in model.graph:
        if node.op_type in {"Gemm", "MatMul"}:
            weights = [value for value in node.inputs[:2] if value is not None and value.is_initializer()]
            if not weights or any("time_embedding" in str(value.name) for value in weights):
                found.append(str(node.name))
    return found


def schedule_of(scheduler_config: Mapping[str, Any] | None, steps: int) -> dict[str, Any]:
    """What a DDIM loop needs: `steps` rows of (timestep, alpha there, alpha behind it), the prediction, the clip."""
    from dq_deploy.models.pipeline import build_scheduler, set_steps

    scheduler = build_scheduler(scheduler_config, "DDIMScheduler")
    set_steps(scheduler, steps)
    known = [float(value) for value in scheduler.alphas_cumprod]
    stride = scheduler.config.num_train_timesteps // steps
    rows = []
    for t in scheduler.timesteps.tolist():
        before = t - stride
        rows.append([t, known[t], known[before] if before >= 0 else float(scheduler.final_alpha_cumprod)])
    if scheduler.config.thresholding:
        raise ValueError("the peers' sampling loop has no dynamic thresholding, expected a scheduler without it")
    return {
        "steps": rows,
        "prediction_type": scheduler.config.prediction_type,
        "clip": float(scheduler.config.clip_sample_range) if scheduler.config.clip_sample else None,
    }
