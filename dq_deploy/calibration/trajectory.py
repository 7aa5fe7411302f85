"""Sampling runs of a denoiser alone, by the scheduler beside it, or noise in their place."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.calibration.recording.sampling_run import GIB, NOISE_OFFSET, SamplingRun
from dq_deploy.calibration.schedulers import sampling_timesteps
from dq_deploy.errors import OptionError
from dq_deploy.models import engine_name, label_limits, sample_name
from dq_deploy.models.pipeline import PipelineCall, build_scheduler
from dq_deploy.models.pipeline.call import generators_of
from dq_deploy.models.pipeline.open import pipeline_of_denoiser, sized_as_called
from dq_deploy.models.sizes import BATCH, sized
from dq_deploy.numerics.arrays import F32, I64, Array
from dq_deploy.record import Call

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class RandomInputs:
    """Noise in the place of recorded inputs.

    Attributes:
        name: of the input that is noise.
        samples: [T, N, ...] float32; index 0 is the lowest timestep.
        timesteps: [T] float32, strictly increasing.
        rows: [N, ...] by name of the other inputs.
        shared: inputs without an axis of samples, by name.
        asked: number of trajectories asked for; N is smaller where memory did not hold them.
    """

    name: str
    samples: F32
    timesteps: F32
    rows: Mapping[str, Array]
    shared: Mapping[str, Array]
    asked: int

    @property
    def pictures(self) -> int:
        """N."""
        return int(self.samples.shape[1])

    @property
    def least(self) -> int:
        """Inputs of each step."""
        return self.pictures

    def flat(self) -> dict[str, Array]:
        """All T * N inputs by name, steps mixed: entry i is trajectory i // T at step i % T."""
        steps, count = self.samples.shape[:2]
        step = np.tile(np.arange(steps, dtype=np.int64), count)
        return self.at(step, np.repeat(np.arange(count, dtype=np.int64), steps))

    def at(self, step: I64, nth: I64) -> dict[str, Array]:
        """Inputs by name with `step` and `trajectory`: entry i is trajectory nth[i] at step[i]."""
        return {
            self.name: self.samples[step, nth],
            "timestep": self.timesteps[step],
            "step": step,
            "trajectory": nth,
            **{name: value[nth] for name, value in self.rows.items()},
            **{name: np.broadcast_to(value, (len(step), *value.shape)) for name, value in self.shared.items()},
        }


def run_of_denoiser(
    module: torch.nn.Module,
    scheduler_config: Mapping[str, Any] | None,
    call: Call,
    *,
    steps: int,
    samples: int,
    seed: int = 0,
    labels: Sequence[int] = (),
    conditions: Mapping[str, Array] | None = None,
    at_once: int = 1,
    device: str = "cpu",
) -> SamplingRun:
    """A run of a denoiser alone by the class of scheduler that its configuration names.

    Args:
        module: the float denoiser.
        scheduler_config: diffusers configuration.
        call: of the denoiser.
        steps: sampling steps.
        samples: pictures that may be drawn.
        seed: of noise and classes; each picture has its own generator.
        labels: classes to draw from, by default all of the model's.
        conditions: [samples, ...] by input name, one row a picture.
        at_once: pictures at a time.
        device: where it draws.

    Raises:
        OptionError: an option is out of range, or the scheduler needs more than a denoiser has.
        ModelError: there is no scheduler, or one whose class diffusers does not have; or the model's output cannot be
            a step of its input.
    """
    import torch

    if samples < 1:
        raise OptionError(f"samples is {samples}, expected at least 1")
    given = dict(conditions or {})
    for name, value in given.items():
        if len(value) != samples:
            raise OptionError(f"{name} has {len(value)} rows, expected {samples}, one for each trajectory")
    chosen = labels_of(call, labels, samples, seed)
    pipeline = pipeline_of_denoiser(module, build_scheduler(scheduler_config))
    if chosen is not None and "class_labels" not in inspect.signature(type(pipeline).__call__).parameters:
        raise OptionError(
            f"the model has classes, and {type(pipeline).__name__}, which samples by its scheduler, takes none; give "
            "the whole pipeline, or another `scheduler`"
        )
    asked = PipelineCall(
        steps=steps,
        seed=seed,
        count=samples,
        labels=None if chosen is None else tuple(int(label) for label in chosen),
        conditions={name: torch.from_numpy(np.array(value)) for name, value in given.items()},
    )
    asked = sized_as_called(asked, module.config, call)
    return SamplingRun(pipeline, module, call, asked, at_once=at_once, device=device)


def labels_of(call: Call, labels: Sequence[int], count: int, seed: int) -> I64 | None:
    """Classes of pictures, [count] int64: every class equally often, in random order; None for a model without.

    Args:
        call: of the denoiser, whose limits say which classes there are.
        labels: classes to draw from, () for all.
        count: of pictures.
        seed: of the order.

    Raises:
        OptionError: labels for a model without classes, or one that it does not have.
    """
    limits = label_limits(call)
    if limits is None:
        if labels:
            raise OptionError("got labels, expected none: the model has no classes")
        return None
    low, high = limits
    allowed = np.arange(low, high + 1) if not labels else np.asarray(labels, np.int64)
    if allowed.min() < low or allowed.max() > high:
        raise OptionError(f"labels span {allowed.min()}..{allowed.max()}, expected {low}..{high}")
    order = np.random.default_rng(seed).permutation(count) % len(allowed)
    return allowed[order].astype(np.int64)


def random_inputs(
    scheduler_config: Mapping[str, Any] | None,
    call: Call,
    *,
    steps: int,
    samples: int,
    seed: int = 0,
    labels: Sequence[int] = (),
    conditions: Mapping[str, Array] | None = None,
    memory_gib: float = 2.0,
) -> RandomInputs:
    """Unit normal noise at every timestep instead of a sampling run: costs nothing, resembles images only when noisy.

    Args:
        scheduler_config: diffusers configuration.
        call: of the denoiser.
        steps: sampling steps whose timesteps are used.
        samples: inputs at each step; fewer where they would not fit in `memory_gib`.
        seed: of noise and classes.
        labels: classes to draw from, by default all of the model's.
        conditions: [samples, ...] by input name.
        memory_gib: most memory the result may take.

    Raises:
        OptionError: an option is out of range, or not one input a step fits.
    """
    timesteps, given = sampling_timesteps(scheduler_config, steps), dict(conditions or {})
    name = sample_name(call)
    shape = next(sized(item.shape, 1, call.sizes)[1:] for item in call.inputs if item.name == name)
    own = {key: value for key, value in given.items() if _has_samples(call, key)}
    each = len(timesteps) * (4 * int(np.prod(shape)) + sum(int(value[0].nbytes) for value in own.values()))
    count = min(samples, int(memory_gib * GIB) // each)
    if count < 1:
        raise OptionError(f"memory_gib is {memory_gib}, expected at least {each / GIB:.3g}: one trajectory takes that")
    noise = [_noise((len(timesteps), *shape), seed, index) for index in range(count)]
    chosen = labels_of(call, labels, samples, seed)
    return RandomInputs(
        name=name,
        samples=np.stack(noise, axis=1),
        timesteps=timesteps,
        rows={**({} if chosen is None else {"class_labels": chosen[:count]}), **own},
        shared={key: value for key, value in given.items() if key not in own},
        asked=samples,
    )


def _has_samples(call: Call, name: str) -> bool:
    return next(bool(item.shape) and item.shape[0] == BATCH for item in call.inputs if engine_name(item.name) == name)


def _noise(shape: tuple[int, ...], seed: int, index: int) -> F32:
    """Unit normal noise of one trajectory, from its own generator."""
    import torch

    (generator,) = generators_of(seed, [NOISE_OFFSET + index])
    return np.asarray(torch.randn(shape, generator=generator).numpy())
