"""Pipelines of diffusers: open one from a folder, and say what is asked of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.models.pipeline.call import PipelineCall
from dq_deploy.models.pipeline.schedulers import SHORT_NAMES, build_scheduler, set_steps

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

__all__ = [
    "SHORT_NAMES",
    "PipelineCall",
    "build_scheduler",
    "denoiser_name",
    "open_pipeline",
    "scheduler_name",
    "set_steps",
]


def open_pipeline(
    path: str | Path,
    *,
    component: str | None = None,
    denoiser: torch.nn.Module | None = None,
    scheduler: str | None = None,
    variant: str | None = None,
    asked: PipelineCall | None = None,
) -> DiffusionPipeline:
    """Open a folder of diffusers as a pipeline; nothing is downloaded and no code in it is run.

    A folder with model_index.json is the pipeline it says. A denoiser alone (config.json, or unet/ beside scheduler/)
    becomes a `DenoiserPipeline`.

    Args:
        path: the folder.
        component: which denoiser, as `unet`; needed only where the pipeline has several.
        denoiser: torch module in the denoiser's place; the float one is then not loaded.
        scheduler: a class of diffusers or a key of `SHORT_NAMES`, built from the folder's own configuration; by default
            the folder's own class.
        variant: of the weight files, as `fp16`.
        asked: what the pipeline will be asked for: where its class does not take a picture or a mask, diffusers' class
            that does, of the same components, is opened.

    Returns:
        The pipeline, float32, on the CPU, without progress bars. `denoiser_name` says where its denoiser is.

    Raises:
        ModelError: no such folder, something that it needs is missing or damaged, or code in it would have to be run.
        OptionError: a scheduler that does not exist or does not fit.
        MissingDependencyError: a text pipeline without the extra `pipelines`.
    """
    from dq_deploy.models.pipeline.open import open_folder

    return open_folder(
        Path(path), component=component, denoiser=denoiser, scheduler=scheduler, variant=variant, asked=asked
    )


def denoiser_name(pipeline: Any, component: str | None = None) -> str:
    """Name of the component that is a pipeline's denoiser, as `unet`.

    Raises:
        OptionError: it has none, several and none is named, or no component of that name.
    """
    from dq_deploy.models.pipeline.folder import the_denoiser

    return the_denoiser(type(pipeline).__name__, [n for n, value in pipeline.components.items() if value], component)


def scheduler_name(pipeline: Any, denoiser: Any) -> str | None:
    """Name of the scheduler that takes a denoiser's steps, as `scheduler`, or `prior_scheduler` of a prior.

    Args:
        pipeline: of diffusers.
        denoiser: one of its components.

    Returns:
        The name, or None where the pipeline has no scheduler for it.
    """
    from dq_deploy.models.load.pipeline_folder import scheduler_of

    component = next((name for name, value in pipeline.components.items() if value is denoiser), "")
    name = scheduler_of(component, pipeline.components)
    return None if getattr(pipeline, name, None) is None else name
