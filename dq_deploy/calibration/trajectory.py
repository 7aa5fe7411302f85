"""Calibration inputs from the float model's own DDIM sampling trajectory, or noise in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.calibration.non_finite import first_non_finite
from dq_deploy.calibration.schedulers import DEFAULT_CONFIG, build_scheduler
from dq_deploy.errors import ModelError, NonFiniteError, OptionError, library_errors
from dq_deploy.numerics.arrays import F32, F64, I64, Array
from dq_deploy.record.model_config import channels_of, sample_shape

if TYPE_CHECKING:
    import torch

DenoiseFeeds = Callable[[Mapping[str, Any]], Any]
"""A denoiser as a function of its named inputs."""

GIB = 1 << 30

NOISE_OFFSET = 500_000_009
"""Keeps calibration noise apart from the noise of images sampled with the same seed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """What the denoiser is given on the way from noise to images.

    Attributes:
        samples: [T, N, C, H, W] float32, the denoiser's input; index 0 is the lowest timestep.
        timesteps: [T] float32, strictly increasing.
        labels: [N] int64, or None for an unconditional model.
        asked: number of trajectories asked for; N is smaller where memory did not hold them.
        conditions: [N, ...] by input name: what each trajectory is conditioned on besides its label.
    """

    samples: F32
    timesteps: F32
    labels: I64 | None
    asked: int
    conditions: Mapping[str, Array] = field(default_factory=dict)

    def flat(self) -> dict[str, Array]:
        """All T * N inputs by name, steps mixed: entry i is trajectory i // T at step i % T.

        Returns:
            `sample` [T*N, C, H, W], `timestep` [T*N] float32, `step` [T*N] int64, `trajectory` [T*N] int64, with
            classes `class_labels` [T*N] int64, and the conditions.
        """
        steps, count = self.samples.shape[:2]
        step = np.tile(np.arange(steps, dtype=np.int64), count)
        return self.at(step, np.repeat(np.arange(count, dtype=np.int64), steps))

    def at(self, step: I64, trajectory: I64) -> dict[str, Array]:
        """Inputs by name, as `flat` gives them: entry i is trajectory[i] at step[i]."""
        inputs: dict[str, Array] = {
            "sample": self.samples[step, trajectory],
            "timestep": self.timesteps[step],
            "step": step,
            "trajectory": trajectory,
        }
        if self.labels is not None:
            inputs["class_labels"] = self.labels[trajectory]
        inputs.update({name: value[trajectory] for name, value in self.conditions.items()})
        return inputs


def build_ddim(scheduler_config: Mapping[str, Any] | None, steps: int) -> Any:
    """The DDIMScheduler of diffusers for a saved configuration, its timesteps set.

    Without a configuration it has diffusers' defaults (1,000 linear steps, noise prediction).

    Raises:
        OptionError: `steps` is not in 1..the training steps, or a timestep would lie outside of them.
        ModelError: the configuration is of another class than DDIM and DDPM, or diffusers refuses it.
    """
    return build_scheduler(DEFAULT_CONFIG if scheduler_config is None else scheduler_config, "ddim", steps)


def sampling_timesteps(scheduler_config: Mapping[str, Any] | None, steps: int) -> F32:
    """Timesteps a DDIM sampler of that many steps visits: [T] float32, strictly increasing."""
    values = np.asarray(build_ddim(scheduler_config, steps).timesteps.numpy(), np.float32)
    return np.unique(values)


def output_influence(scheduler_config: Mapping[str, Any] | None, steps: int) -> F64:
    """How far a DDIM step moves the next sample for an error of one in the model's output: [T], index 0 the last step.

    The coefficient of the output in the next sample, ``sqrt(1 - a') - sqrt(a' (1 - a) / a)`` where noise is predicted,
    a and a' the cumulative alphas before and after the step (DDIM, arXiv 2010.02502, eq. 12, eta 0); without clipping.
    """
    import torch

    plain = {
        **(DEFAULT_CONFIG if scheduler_config is None else scheduler_config),
        "clip_sample": False,
        "thresholding": False,
    }
    scheduler = build_ddim(plain, steps)
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    by_time = {float(t): abs(float(scheduler.step(one, t, zero, eta=0.0).prev_sample)) for t in scheduler.timesteps}
    return np.array([by_time[t] for t in sorted(by_time)])


def _labels(config: Mapping[str, Any], labels: Sequence[int] | None, count: int, seed: int) -> Any:
    classes = config.get("num_class_embeds")
    if classes is None:
        if labels:
            raise OptionError("got labels, expected none: the model has no classes")
        return None
    allowed = np.arange(classes) if not labels else np.asarray(labels, np.int64)
    if allowed.min() < 0 or allowed.max() >= classes:
        raise OptionError(f"labels span {allowed.min()}..{allowed.max()}, expected 0..{classes - 1}")
    # every class equally often, in random order
    order = np.random.default_rng(seed).permutation(count) % len(allowed)
    return allowed[order].astype(np.int64)


def _count(steps: int, shape: tuple[int, ...], conditions: Mapping[str, Array], samples: int, memory_gib: float) -> int:
    """Trajectories that fit in `memory_gib`, at most `samples`."""
    if samples < 1:
        raise OptionError(f"samples is {samples}, expected at least 1")
    for name, value in conditions.items():
        if len(value) != samples:
            raise OptionError(f"{name} has {len(value)} rows, expected {samples}, one for each trajectory")
    each = steps * (int(np.prod(shape)) * 4 + sum(int(value[0].nbytes) for value in conditions.values()))
    count = min(samples, int(memory_gib * GIB) // each)
    if count < 1:
        raise OptionError(f"memory_gib is {memory_gib}, expected at least {each / GIB:.3g}: one trajectory takes that")
    return count


def _noise(shape: tuple[int, ...], seed: int, index: int) -> torch.Tensor:
    """Unit normal noise of one trajectory, from its own generator."""
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + NOISE_OFFSET + index))


def collect_trajectory(
    module: torch.nn.Module,
    scheduler_config: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    *,
    steps: int,
    samples: int,
    batch: int = 32,
    seed: int = 0,
    labels: Sequence[int] | None = None,
    conditions: Mapping[str, Array] | None = None,
    denoise: DenoiseFeeds | None = None,
    memory_gib: float = 2.0,
    progress: Callable[[int, int], None] | None = None,
) -> Trajectory:
    """Sample with DDIM (eta 0) and keep what the denoiser was given at every step.

    Args:
        module: the float denoiser.
        scheduler_config: diffusers configuration, or None for the defaults.
        config: the denoiser's diffusers configuration.
        steps: sampling steps.
        samples: trajectories; fewer are drawn where they would not fit in `memory_gib`.
        batch: trajectories at a time.
        seed: of noise and labels; each trajectory has its own generator.
        labels: classes to draw from, by default all of the model's.
        conditions: [samples, ...] by input name, one row a trajectory.
        denoise: calls the denoiser with named inputs; by default they are its keyword arguments.
        memory_gib: most memory the result may take.
        progress: called with (trajectories done, trajectories).

    Raises:
        OptionError: an option is out of range, or not one trajectory fits.
        ModelError: the model's output cannot be a step of its input.
        NonFiniteError: the float model gives NaN or infinity.
    """
    import torch

    if samples < 1 or batch < 1:
        raise OptionError(f"samples is {samples} and batch {batch}, expected at least 1")
    timesteps = sampling_timesteps(scheduler_config, steps)
    shape, given = sample_shape(config), dict(conditions or {})
    out_channels = channels_of(config, "out_channels")
    if out_channels not in (shape[0], 2 * shape[0]):
        raise ModelError(
            f"the model takes {shape[0]} channels and gives {out_channels}, expected as many for a sampling "
            'trajectory; calibrate with `kind="random"` or `latents`'
        )
    count = _count(len(timesteps), shape, given, samples, memory_gib)
    chosen = _labels(config, labels, samples, seed)
    kept = np.empty((len(timesteps), count, *shape), np.float32)
    every = given if chosen is None else {**given, "class_labels": chosen}
    call = denoise or (lambda inputs: module(**inputs, return_dict=False)[0])
    for start in range(0, count, batch):
        stop = min(start + batch, count)
        noise = torch.stack([_noise(shape, seed, i) for i in range(start, stop)])
        part = {name: torch.from_numpy(np.array(value[start:stop])) for name, value in every.items()}
        _walk(module, call, build_ddim(scheduler_config, steps), noise, part, timesteps, kept[:, start:stop])
        if progress is not None:
            progress(stop, count)
    return Trajectory(
        samples=kept,
        timesteps=timesteps,
        labels=None if chosen is None else chosen[:count],
        asked=samples,
        conditions={name: value[:count] for name, value in given.items()},
    )


def random_trajectory(
    scheduler_config: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    *,
    steps: int,
    samples: int,
    seed: int = 0,
    labels: Sequence[int] | None = None,
    conditions: Mapping[str, Array] | None = None,
    memory_gib: float = 2.0,
) -> Trajectory:
    """Unit normal noise at every timestep instead of a sampling run: costs nothing, resembles images only when noisy.

    Args:
        scheduler_config: diffusers configuration, or None for the defaults.
        config: the denoiser's diffusers configuration.
        steps: sampling steps whose timesteps are used.
        samples: inputs at each step; fewer where they would not fit in `memory_gib`.
        seed: of noise and labels.
        labels: classes to draw from, by default all of the model's.
        conditions: [samples, ...] by input name.
        memory_gib: most memory the result may take.

    Raises:
        OptionError: an option is out of range, or not one input a step fits.
    """
    timesteps = sampling_timesteps(scheduler_config, steps)
    shape, given = sample_shape(config), dict(conditions or {})
    count = _count(len(timesteps), shape, given, samples, memory_gib)
    chosen = _labels(config, labels, samples, seed)
    noise = [_noise((len(timesteps), *shape), seed, index).numpy() for index in range(count)]
    return Trajectory(
        samples=np.stack(noise, axis=1),
        timesteps=timesteps,
        labels=None if chosen is None else chosen[:count],
        asked=samples,
        conditions={name: value[:count] for name, value in given.items()},
    )


def _walk(
    module: torch.nn.Module,
    denoise: DenoiseFeeds,
    scheduler: Any,
    noise: torch.Tensor,
    conditions: Mapping[str, torch.Tensor],
    timesteps: F32,
    kept: F32,
) -> None:
    """Denoise one batch, writing each input into `kept` [T, B, C, H, W]."""
    import torch

    latent = noise * float(scheduler.init_noise_sigma)
    with torch.inference_mode():
        for step, t in enumerate(scheduler.timesteps, 1):
            place = f"sampling with the float model, step {step} of {len(scheduler.timesteps)} (timestep {float(t):g})"
            with library_errors(place, "check the model's configuration and its scheduler's"):
                given = scheduler.scale_model_input(latent, t)
                kept[int(np.searchsorted(timesteps, np.float32(float(t))))] = given.numpy()
                feeds = {"sample": given, "timestep": torch.full((len(latent),), float(t)), **conditions}
                output = denoise(feeds)[:, : latent.shape[1]]
                latent = scheduler.step(output, t, latent, eta=0.0).prev_sample
            if not bool(torch.isfinite(latent).all()):
                raise NonFiniteError(
                    f"the float model gives NaN or infinity at timestep {float(t):g}, step {step} of "
                    f"{len(scheduler.timesteps)}: {_first_non_finite(module, denoise, feeds)}"
                )


def _first_non_finite(module: torch.nn.Module, denoise: DenoiseFeeds, feeds: Mapping[str, torch.Tensor]) -> str:
    """Where it came from and what to do, in words."""
    import torch

    for name, value in feeds.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return f"its input {name} is not finite; check it"
    layer = first_non_finite(module, lambda: denoise(feeds))
    if layer is not None:
        return f"the first layer whose output is not finite is {layer}; check the model's weights there"
    return "every layer's output is finite, so the step made it; check the scheduler's configuration"
