"""The DDIM and DDPM sampling loop of diffusers around any denoiser.

Every image has its own random generator, seeded by the seed and its index: an image does not depend on
the batch it was made in, and two denoisers can be compared from the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.errors import ModelError, NonFiniteError, OptionError, library_errors
from dq_deploy.models import default_call, input_specs, random_conditions
from dq_deploy.models.pipeline import build_scheduler as scheduler_of_config
from dq_deploy.models.pipeline import set_steps
from dq_deploy.numerics import step_bucket
from dq_deploy.numerics.arrays import F32
from dq_deploy.record.model_config import channels_of, sample_shape
from dq_deploy.record.scheduler import check_scheduler
from dq_deploy.sampling.denoise import Conditions, Denoise

if TYPE_CHECKING:
    import torch

SCHEDULERS = ("ddim", "ddpm")
PICTURE_CHANNELS = (1, 3)

_SEED_STRIDE = 1_000_003  # keeps the generators of neighbouring seeds apart


class SamplingStopped(NonFiniteError):
    """The loop met a value that is not finite.

    Attributes:
        step: index of the step, from 0.
        sample: [B, C, H, W], the denoiser's input at that step.
        timestep: [B] float32.
        conditions: by input name.
    """

    def __init__(self, message: str, *, step: int, sample: F32, timestep: F32, conditions: Conditions) -> None:
        super().__init__(message)
        self.step = step
        self.sample = sample
        self.timestep = timestep
        self.conditions = conditions


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How images are drawn.

    Attributes:
        steps: denoising steps, 1 to the scheduler's training steps.
        scheduler: `ddim` or `ddpm`.
        eta: DDIM's share of fresh noise, 0 (none) to 1.
        seed: of the starting noise and of the noise of every step.
        batch: images at a time; does not change the images of a batch-invariant denoiser.
    """

    steps: int = 20
    scheduler: str = "ddim"
    eta: float = 0.0
    seed: int = 0
    batch: int = 10

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            OptionError: one is out of range.
        """
        if self.scheduler not in SCHEDULERS:
            raise OptionError(f"scheduler is {self.scheduler!r}, expected one of {', '.join(SCHEDULERS)}")
        for name, value in (("steps", self.steps), ("batch", self.batch)):
            if value < 1:
                raise OptionError(f"{name} is {value}, expected at least 1")
        if not 0 <= self.eta <= 1:
            raise OptionError(f"eta is {self.eta}, expected a number from 0 to 1")
        if self.scheduler == "ddpm" and self.eta:
            raise OptionError(f'eta is {self.eta}, expected 0 with ddpm, which has no eta; use `scheduler="ddim"`')
        if self.seed < 0:
            raise OptionError(f"seed is {self.seed}, expected 0 or more")


def build_scheduler(config: Mapping[str, Any] | None, options: SampleOptions) -> Any:
    """The diffusers scheduler of a saved configuration, with its timesteps set.

    Raises:
        ModelError: there is no configuration, one of another scheduler than DDIM and DDPM, or diffusers refuses it.
        OptionError: more steps than the model was trained with, or a timestep outside of them.
    """
    if config is None:
        raise ModelError("the model has no scheduler configuration, expected one; quantize from a folder that has it")
    check_scheduler(config)
    scheduler = scheduler_of_config(config, options.scheduler)
    set_steps(scheduler, options.steps)
    return scheduler


def labels_for(model_config: Mapping[str, Any], labels: Sequence[int] | None) -> NDArray[np.int64] | None:
    """Checked class labels, [N] int64, or None for an unconditional model.

    Raises:
        OptionError: labels for an unconditional model, none for a conditional one, or one out of range.
    """
    classes = model_config.get("num_class_embeds")
    if classes is None:
        if labels is not None:
            raise OptionError("got labels, expected none: the model has no classes; give `count` instead")
        return None
    if labels is None or len(labels) == 0:
        raise OptionError(f"the model is class-conditional, expected labels from 0 to {classes - 1}; give `labels`")
    for label in labels:
        if not 0 <= label < classes:
            raise OptionError(f"label {label} is out of range, expected 0 to {classes - 1}")
    return np.asarray(labels, np.int64)


def conditions_for(
    model_config: Mapping[str, Any], given: Conditions, *, count: int, seed: int
) -> dict[str, NDArray[Any]]:
    """Embeddings of each image by input name, [N, ...]: the given rows in turn, or random normal ones.

    Args:
        model_config: the denoiser's diffusers configuration.
        given: rows by input name, checked against the model's inputs; empty for random ones.
        count: N.
        seed: of random ones; row i depends on the seed and i only.
    """
    specs = [
        spec
        for spec in input_specs(default_call(model_config))
        if spec.name not in ("sample", "timestep", "class_labels")
    ]
    if not specs:
        return {}
    if given:
        return {name: np.take(value, np.arange(count), axis=0, mode="wrap") for name, value in given.items()}
    drawn = [random_conditions(default_call(model_config), 1, np.random.default_rng([seed, i])) for i in range(count)]
    return {spec.name: np.concatenate([row[spec.name] for row in drawn]) for spec in specs}


def _generators(seed: int, indices: range) -> list[torch.Generator]:
    import torch

    return [torch.Generator().manual_seed(seed * _SEED_STRIDE + index) for index in indices]


def noise_for(model_config: Mapping[str, Any], *, count: int, seed: int) -> F32:
    """Starting noise [N, C, H, W] float32; image i depends on the seed and i only."""
    import torch

    shape = sample_shape(model_config)
    draws = [torch.randn(shape, generator=g) for g in _generators(seed, range(count))]
    return np.asarray(torch.stack(draws).numpy())


def sample_images(
    denoise: Denoise,
    *,
    model_config: Mapping[str, Any],
    scheduler_config: Mapping[str, Any] | None,
    count: int,
    labels: NDArray[np.int64] | None,
    options: SampleOptions,
    conditions: Conditions | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> F32:
    """Draw images, or latents where the model has neither 1 nor 3 channels.

    Args:
        denoise: see `dq_deploy.sampling.denoise`.
        model_config: the denoiser's diffusers configuration.
        scheduler_config: the scheduler's.
        count: N, number of images.
        labels: [N] int64 from `labels_for`.
        options: steps, scheduler, eta, seed, batch.
        conditions: [N, ...] by input name from `conditions_for`.
        on_step: called with (steps done, steps in all) over all batches.

    Returns:
        [N, C, H, W] float32: images clipped to [-1, 1], latents as they are.

    Raises:
        SamplingStopped: a latent or an output is not finite; names the step.
        OptionError: the options do not fit the model.
    """
    noise = noise_for(model_config, count=count, seed=options.seed)
    given = {**({} if labels is None else {"class_labels": labels}), **(conditions or {})}
    starts = range(0, count, options.batch)
    done: list[F32] = []
    for position, start in enumerate(starts):
        stop = min(start + options.batch, count)

        def report(step: int, steps: int, before: int = position) -> None:
            if on_step is not None:
                on_step(before * steps + step, len(starts) * steps)

        part = {name: np.ascontiguousarray(value[start:stop]) for name, value in given.items()}
        generators = _generators(options.seed + 1, range(start, stop))
        scheduler = build_scheduler(scheduler_config, options)
        done.append(_denoise_batch(denoise, scheduler, noise[start:stop], part, generators, options, report))
    found = np.concatenate(done)
    return found if draws_latents(model_config) else np.clip(found, -1, 1)


def draws_latents(model_config: Mapping[str, Any]) -> bool:
    """Whether what is sampled is no picture: it has neither 1 nor 3 channels."""
    return channels_of(model_config, "in_channels") not in PICTURE_CHANNELS


def _denoise_batch(
    denoise: Denoise,
    scheduler: Any,
    noise: F32,
    conditions: Conditions,
    generators: list[torch.Generator],
    options: SampleOptions,
    report: Callable[[int, int], None],
) -> F32:
    import torch

    latent = torch.from_numpy(noise) * float(scheduler.init_noise_sigma)
    timesteps = [float(t) for t in scheduler.timesteps]
    extra = {"eta": options.eta} if options.scheduler == "ddim" else {}
    for step, value in enumerate(timesteps):
        t = scheduler.timesteps[step]
        given = np.ascontiguousarray(scheduler.scale_model_input(latent, t).numpy(), np.float32)
        timestep = np.full(len(given), value, np.float32)
        place = f"step {step + 1} of {len(timesteps)} (timestep {value:g})"
        stopped = partial(SamplingStopped, step=step, sample=given, timestep=timestep, conditions=conditions)
        try:
            with library_errors(place, "check the shapes of what it is given"):
                output = denoise(given, timestep, conditions)
        except NonFiniteError as error:
            raise stopped(f"{place}: {error}") from error
        if not np.isfinite(output).all():
            raise stopped(f"{place}: the denoiser's output is not finite")
        used = _without_learned_variance(scheduler, torch.from_numpy(output), latent.shape[1])
        with library_errors(place, "check the scheduler's configuration"):
            latent = scheduler.step(used, t, latent, generator=generators, **extra).prev_sample
        if not bool(torch.isfinite(latent).all()):
            raise stopped(f"{place}: the latent behind the step is not finite")
        report(step + 1, len(timesteps))
    return np.asarray(latent.numpy(), np.float32)


def _without_learned_variance(scheduler: Any, output: torch.Tensor, channels: int) -> torch.Tensor:
    """The predicted mean alone, unless the scheduler itself reads the variance behind it."""
    if output.shape[1] == channels:
        return output
    if output.shape[1] != 2 * channels:
        raise ModelError(
            f"the denoiser gives {output.shape[1]} channels for {channels}, expected {channels}, "
            f"or {2 * channels} with a learned variance"
        )
    # DDIM keeps the key in its configuration but does not read the variance
    is_ddpm = type(scheduler).__name__ == "DDPMScheduler"
    if is_ddpm and scheduler.config.variance_type in ("learned", "learned_range"):
        return output
    return output[:, :channels]


def sampler_timesteps(config: Mapping[str, Any] | None, options: SampleOptions) -> list[float]:
    """Timesteps the sampler visits, in its order; same errors as `build_scheduler`."""
    return [float(t) for t in build_scheduler(config, options).timesteps]


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
