"""A model repository for Triton Inference Server: the denoiser, and the denoising loop around it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dq_deploy.serve.triton.repository import WrittenRepository


def write_triton_repository(
    out: Path,
    *,
    model: Path | None,
    engine: Path,
    name: str,
    component: str | None = None,
    scheduler: str | None = None,
    max_batch: int = 8,
    instances: int = 1,
    torch_threads: int = 1,
    hash_check: bool = True,
) -> WrittenRepository:
    """Write a folder that Triton Inference Server loads as its model repository.

    It holds two models: `<name>_denoiser`, one denoising step, run by Triton's backend for ONNX Runtime or TensorRT;
    and `<name>`, a whole picture: diffusers' pipeline in Triton's python backend, which asks the first for each step.
    The same inputs give the same files.

    Args:
        out: folder to write, new or empty; it is there whole or not at all.
        model: folder of the pipeline, of which all is copied but the denoiser's weights; None, or the folder of a
            denoiser alone, gives samples as the scheduler makes them.
        engine: a record, which is exported for ONNX Runtime; an ONNX file for it; or a plan of TensorRT.
        name: of the loop's model: letters, digits, `_`, `-` and `.`.
        component: the denoiser's name, where the pipeline has several.
        scheduler: a class of diffusers or a short name, as of `open_pipeline`; None is the one that the engine was
            calibrated with, else the folder's.
        max_batch: samples in one call of the denoiser, from 1; from 2 for a pipeline with guidance.
        instances: processes that draw pictures side by side, each with the pipeline's float parts in memory.
        torch_threads: threads of torch in each of them, for text encoder, scheduler and VAE.
        hash_check: refuse an engine whose content is not what was written.

    Returns:
        What was written.

    Raises:
        OptionError: a name, number or engine that does not fit, or a pipeline that a request cannot be answered with.
        ModelError: the pipeline or its denoiser cannot be found, or it has several and none is named.
        FileProblemError: a damaged engine, a folder that is not empty, or one that cannot be written.
    """
    from dq_deploy.serve.triton.repository import RepositoryRequest, write_repository

    return write_repository(
        out,
        RepositoryRequest(
            model=model,
            engine=engine,
            name=name,
            component=component,
            scheduler=scheduler,
            max_batch=max_batch,
            instances=instances,
            torch_threads=torch_threads,
            hash_check=hash_check,
        ),
    )
