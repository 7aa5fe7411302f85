"""What a denoiser is fed while it is verified: noised images at the noise level of each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy import calibration
from dq_deploy.models import call_of_record, input_specs, random_conditions, sample_name
from dq_deploy.models.sizes import BATCH, sized
from dq_deploy.numerics.arrays import F32, Array
from dq_deploy.record import Call, Record

if TYPE_CHECKING:
    from dq_deploy.engines.base import Runner

ONE_STEP = "one step"
"""Kind of a batch whose samples share a timestep because the engine takes no other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Inputs of one run.

    Attributes:
        feeds: arrays by input name.
        buckets: [B] step bucket of each sample.
        kind: `step` (all samples at one bucket), `mixed`, `path` (for the float operations alone) or `ONE_STEP`.
        shared: inputs without a batch axis, which all samples have in common.
        sizes: of the axes that vary, by name.
    """

    feeds: Mapping[str, Array]
    buckets: NDArray[np.int64]
    kind: str
    shared: frozenset[str] = frozenset()
    sizes: Mapping[str, int] = field(default_factory=dict)

    def one(self, index: int) -> dict[str, Array]:
        """Inputs of one sample, as a batch of one."""
        return {n: value if n in self.shared else value[index : index + 1] for n, value in self.feeds.items()}

    def repeated(self, index: int, count: int) -> dict[str, Array]:
        """Inputs of one sample, `count` times."""
        one = self.one(index)
        return {n: value if n in self.shared else np.repeat(value, count, axis=0) for n, value in one.items()}


@dataclass(kw_only=True)
class Runs:
    """What an engine is run with, and what it gave.

    Attributes:
        batches: whose integer layers are compared.
        paths: for the float operations alone.
        names: of the denoiser's outputs, in order.
        outputs: all outputs of both, in this order.
        sizes_note: why the call's own sizes alone were run, in words; empty where others were, or none varies.
        batch_difference: how a batch of mixed steps differs from its samples run alone, in words; empty where it does
            not, None where no batch may mix steps.
    """

    batches: list[Batch]
    paths: list[Batch]
    names: tuple[str, ...]
    outputs: list[dict[str, Array]]
    batch_difference: str | None
    sizes_note: str = ""

    @property
    def all(self) -> list[Batch]:
        """Both."""
        return [*self.batches, *self.paths]

    @property
    def sizes(self) -> tuple[dict[str, int], ...]:
        """Every choice of sizes that was run, in order."""
        found: list[dict[str, int]] = []
        for batch in self.batches:
            if batch.sizes and dict(batch.sizes) not in found:
                found.append(dict(batch.sizes))
        return tuple(found)

    @property
    def finals(self) -> list[Finals]:
        """The denoiser's outputs of each."""
        return [tuple(values[name] for name in self.names) for values in self.outputs]


Finals = tuple[Array, ...]
"""The denoiser's outputs of one batch, in order."""


def spread_buckets(count: int, wanted: int) -> list[int]:
    """Up to `wanted` step buckets spread over 0..count-1, first and last included."""
    return sorted({round(float(b)) for b in np.linspace(0, count - 1, min(max(wanted, 1), count))})


def noise_levels(scheduler_config: Mapping[str, Any] | None, timesteps: F32) -> tuple[F32, F32]:
    """Factors (signal, noise) of x_t = signal * x_0 + noise * eps at each timestep; noise only without a scheduler."""
    known = calibration.noise_levels(scheduler_config, timesteps)
    return known or (np.zeros(len(timesteps), np.float32), np.ones(len(timesteps), np.float32))


def _random_images(generator: np.random.Generator, shape: tuple[int, ...]) -> F32:
    """Smooth random pictures in [-1, 1]: waves of random direction, clipped."""
    b, c, h, w = shape
    y, x = np.mgrid[0:h, 0:w] / max(h, w)
    image = np.zeros(shape)
    for _ in range(4):
        fy, fx, phase, weight = (generator.uniform(low, 4.0, (b, c, 1, 1)) for low in (-4.0, -4.0, 0.0, 0.2))
        image += weight * np.sin(2 * np.pi * (fy * y + fx * x) + 2 * phase)
    return np.clip(image / 2, -1, 1).astype(np.float32)


def shared_inputs(call: Call) -> frozenset[str]:
    """Inputs without a batch axis."""
    return frozenset(spec.name for spec in input_specs(call) if spec.shape[:1] != (BATCH,))


def batch_at(
    record: Record, buckets: Sequence[int], *, seed: int, kind: str, sizes: Mapping[str, int] | None = None
) -> Batch:
    """Noised random images with random labels and embeddings, one a bucket given.

    A record with one bucket, as an import without timesteps is, does not say where it is used: its samples are spread
    over all training steps.

    Args:
        record: names the inputs, the timesteps and the scheduler.
        buckets: step bucket of each sample.
        seed: of the noise; the same seed and buckets give the same batch.
        kind: kept in the batch.
        sizes: of the axes that vary, by name; those left out are the call's own.
    """
    generator = np.random.default_rng([seed, *buckets])
    chosen = np.asarray(buckets, np.int64)
    timesteps = record.timesteps[chosen]
    if record.steps == 1 and kind != ONE_STEP:
        timesteps = anywhere(record, len(chosen))
    feeds = random_feeds(record, timesteps.astype(np.float32), generator, sizes or {})
    call = call_of_record(record)
    return Batch(
        feeds=feeds, buckets=chosen, kind=kind, shared=shared_inputs(call), sizes={**call.sizes, **(sizes or {})}
    )


def random_feeds(
    record: Record, timesteps: F32, generator: np.random.Generator, sizes: Mapping[str, int]
) -> dict[str, Array]:
    """Every input at some timesteps: noised images, then what the denoiser is conditioned on.

    Args:
        record: names the inputs and the scheduler.
        timesteps: [B].
        generator: where the numbers come from.
        sizes: of the axes that vary, by name; those left out are the call's own.
    """
    call = call_of_record(record)
    feeds: dict[str, Array] = {
        sample_name(call): noised_images(record, timesteps, generator, sizes),
        "timestep": timesteps,
    }
    return feeds | random_conditions(call, len(timesteps), generator, sizes=sizes)


def anywhere(record: Record, count: int) -> F32:
    """Timesteps spread over all that a model with one step bucket may be used at; fractions where its own is one."""
    if 0 < record.timesteps[0] <= 1:
        return np.linspace(1 / count, 1, count).astype(np.float32)
    return np.rint(np.linspace(0, training_steps(record) - 1, count)).astype(np.float32)


def training_steps(record: Record) -> int:
    """Timesteps the model was trained on; 1000 where its scheduler does not say."""
    known = (record.scheduler_config or {}).get("num_train_timesteps")
    return known if isinstance(known, int) and known > 0 else 1000


def noised_images(
    record: Record, timesteps: F32, generator: np.random.Generator, sizes: Mapping[str, int] | None = None
) -> F32:
    """Random images with the noise of each timestep: the denoiser's noisy input.

    What is no image, as the tokens that some transformers take, is noise alone.
    """
    call = call_of_record(record)
    specs = {spec.name: spec for spec in input_specs(call)}
    shape = sized(specs[sample_name(call)].shape, len(timesteps), {**call.sizes, **(sizes or {})})
    if len(shape) != 4:
        return generator.standard_normal(shape, dtype=np.float32)
    signal, noise = noise_levels(record.scheduler_config, timesteps)
    tail = (-1, 1, 1, 1)
    sample = signal.reshape(tail) * _random_images(generator, shape)
    sample = sample + noise.reshape(tail) * generator.standard_normal(shape, dtype=np.float32)
    return sample.astype(np.float32)


def run_all(runner: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run with those of the feeds that the runner takes."""
    return runner.run({spec.name: feeds[spec.name] for spec in runner.inputs})


MIXED = 8
"""Samples of a batch of mixed steps: enough that kernels which treat few rows apart meet many."""


def plan_batches(
    record: Record,
    *,
    steps: int,
    inputs: int,
    mixed: bool,
    seed: int,
    others: Sequence[Mapping[str, int]] = (),
) -> list[Batch]:
    """The runs of a verification.

    First one batch of `inputs` samples at each of `steps` spread buckets; then, where batches may mix steps, a batch
    of `MIXED` samples at those buckets in turn, and batches of at most 8 samples with every other bucket once. Without
    mixing the other buckets run one by one. Behind them stands one such batch for each of the other sizes.

    Args:
        record: names steps and inputs.
        steps: step buckets that get a batch of their own.
        inputs: samples in each such batch.
        mixed: whether a batch may mix steps.
        seed: of the inputs.
        others: sizes besides the call's own, by name.
    """
    chosen = spread_buckets(record.steps, steps)
    one = "step" if mixed else ONE_STEP
    batches = [batch_at(record, [b] * inputs, seed=seed, kind=one) for b in chosen]
    rest = [b for b in range(record.steps) if b not in chosen]
    if not mixed:
        batches += [batch_at(record, [b], seed=seed + 1, kind=one) for b in rest]
        return batches + [batch_at(record, chosen[-1:], seed=seed + 3, kind=one, sizes=sizes) for sizes in others]
    first = (chosen * MIXED)[:MIXED]
    batches.append(batch_at(record, first, seed=seed + 1, kind="mixed"))
    groups = [rest[start : start + 8] for start in range(0, len(rest), 8)]
    batches += [batch_at(record, group, seed=seed + 2, kind="mixed") for group in groups]
    return batches + [batch_at(record, first, seed=seed + 3, kind="mixed", sizes=sizes) for sizes in others]
