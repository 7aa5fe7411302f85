"""Images out of noise: the diffusers sampling loop with any denoiser in its place."""

from __future__ import annotations

from dq_deploy.sampling.denoise import denoiser_of_module, denoiser_of_runner, first_non_finite_layer
from dq_deploy.sampling.loop import (
    SCHEDULERS,
    SampleOptions,
    SamplingStopped,
    bucket_distances,
    conditions_for,
    constant_images,
    draws_latents,
    labels_for,
    noise_for,
    sample_images,
    sampler_timesteps,
)

__all__ = [
    "SCHEDULERS",
    "SampleOptions",
    "SamplingStopped",
    "bucket_distances",
    "conditions_for",
    "constant_images",
    "denoiser_of_module",
    "denoiser_of_runner",
    "draws_latents",
    "first_non_finite_layer",
    "labels_for",
    "noise_for",
    "sample_images",
    "sampler_timesteps",
]
