"""Pictures out of a pipeline, whatever stands in its denoiser's place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from dq_deploy.errors import NonFiniteError, OptionError, library_errors
from dq_deploy.models.pipeline import PipelineCall, denoiser_name
from dq_deploy.models.pipeline.call import PICTURE_CHANNELS, what_to_check
from dq_deploy.models.pipeline.denoiser_pipeline import DenoiserPipeline
from dq_deploy.numerics import step_bucket
from dq_deploy.numerics.arrays import F32
from dq_deploy.pipelines.watch import OnStep, StepWatch, collected_warnings


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """What a pipeline drew.

    Attributes:
        images: [N, C, H, W] float32: pictures in [-1, 1], or latents as they are.
        latents: whether they are latents.
        timesteps: that the denoiser was given, in the order of the first batch.
        remarks: what diffusers warned of, each once.
    """

    images: F32
    latents: bool
    timesteps: tuple[float, ...]
    remarks: tuple[str, ...]


def draw_images(
    pipeline: Any,
    call: PipelineCall,
    *,
    component: str | None = None,
    batch: int = 1,
    latents: bool = False,
    on_step: OnStep | None = None,
) -> Drawn:
    """Run a pipeline for every image of a call.

    Args:
        pipeline: from `open_pipeline`.
        call: what is asked of it.
        component: its denoiser, where it has several.
        batch: images at a time; an image does not depend on it but through rounding.
        latents: keep the latents of a pipeline with a VAE, in place of pictures.
        on_step: called with (steps done, steps in all) over all batches.

    Raises:
        SamplingStopped: a latent or an output is not finite; names the step.
        OptionError: the pipeline does not take what is asked.
        LibraryError: diffusers refuses or fails; names the step.
    """
    if batch < 1:
        raise OptionError(f"batch is {batch}, expected at least 1")
    name = denoiser_name(pipeline, component)
    starts = range(0, call.count, batch)
    parts: list[F32] = []
    timesteps: tuple[float, ...] = ()
    raw = isinstance(pipeline, DenoiserPipeline) or latents
    with collected_warnings() as remarks:
        for position, start in enumerate(starts):
            indices = range(start, min(start + batch, call.count))
            arguments = call.arguments(pipeline, indices, output_type="latent" if raw else "np")
            report = None if on_step is None else partial(_report, on_step, position, len(starts))
            with StepWatch(pipeline, name, report) as watch:
                parts.append(_run(pipeline, watch, arguments))
            timesteps = timesteps or tuple(watch.timesteps)
    images = np.concatenate(parts)
    if isinstance(pipeline, DenoiserPipeline):
        latents = images.shape[1] not in PICTURE_CHANNELS
        images = images if latents else np.clip(images, -1, 1)
    return Drawn(images=images, latents=latents, timesteps=timesteps, remarks=tuple(remarks))


def _report(on_step: OnStep, position: int, batches: int, step: int, steps: int) -> None:
    on_step(position * steps + step, batches * steps)


def _run(pipeline: Any, watch: StepWatch, arguments: dict[str, Any]) -> F32:
    try:
        with torch.inference_mode(), library_errors(lambda error: watch.place(), what_to_check(pipeline)):
            result = pipeline(**arguments)
    except NonFiniteError as error:
        if hasattr(error, "arguments"):
            raise
        raise watch.stopped(str(error)) from error
    found = getattr(result, "images", None)
    if found is None:
        raise OptionError(
            f"the {type(pipeline).__name__} gives {', '.join(result.keys())} and no images; only pipelines that draw "
            "pictures are sampled"
        )
    return images_of(found)


def images_of(found: Any) -> F32:
    """What a pipeline gives as images: [N, C, H, W] float32, latents as they are and pictures in [-1, 1].

    Args:
        found: latents [N, C, H, W], or pictures [N, H, W, C] from 0 to 1 or as bytes.
    """
    if isinstance(found, torch.Tensor):
        latents: F32 = found.detach().float().cpu().numpy()
        return latents if latents.ndim == 4 else latents[:, None]
    pictures = [
        np.asarray(picture, np.float32) / (255 if np.asarray(picture).dtype == np.uint8 else 1) for picture in found
    ]
    array = np.stack([picture[..., None] if picture.ndim == 2 else picture for picture in pictures])
    return np.ascontiguousarray(np.moveaxis(array, -1, 1) * np.float32(2) - np.float32(1), np.float32)


def bucket_distances(timesteps: Sequence[float], calibrated: F32, edges: F32) -> F32:
    """How far each timestep lies from the calibrated timestep of its bucket.

    Args:
        timesteps: [S] of the sampler.
        calibrated: [T] float32, increasing.
        edges: [T-1] float32.

    Returns:
        [S] float32, 0 where the timestep was calibrated.
    """
    asked = np.asarray(timesteps, np.float32)
    distances: F32 = np.abs(asked - np.asarray(calibrated, np.float32)[step_bucket(asked, edges)])
    return distances


def constant_images(images: F32) -> list[int]:
    """Indices of images that hold a single value in every channel."""
    flat = images.reshape(len(images), images.shape[1], -1)
    return [int(i) for i in np.flatnonzero((np.ptp(flat, axis=2) == 0).all(axis=1))]
