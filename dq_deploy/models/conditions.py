"""Valid values for a denoiser's inputs, where there are no recorded ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from dq_deploy.models.call import input_specs
from dq_deploy.models.sizes import HEIGHT, WIDTH, sized
from dq_deploy.numerics.arrays import Array

if TYPE_CHECKING:
    from dq_deploy.models.sizes import TensorSpec
    from dq_deploy.record import Call

PIXELS_A_LATENT = 8
"""Pixels of the picture along each side of a latent pixel, for the sizes in `time_ids`."""
TRAIN_TIMESTEPS = 1000
"""Example timesteps lie below it, where nobody says which ones a model knows."""
SAMPLES = ("sample", "hidden_states")
"""What a denoiser's forward calls the noisy sample."""


def sample_name(call: Call) -> str:
    """Name of the input that holds the noisy sample: the first of `SAMPLES` that there is, else the first input."""
    names = [spec.name for spec in input_specs(call)]
    return next((name for name in SAMPLES if name in names), names[0])


def example_inputs(call: Call, batch: int, seed: int, sizes: Mapping[str, int] | None = None) -> dict[str, Array]:
    """Random valid inputs by name: normal samples, whole timesteps from 1 (or by the call), conditions; by the seed.

    Args:
        call: of the denoiser.
        batch: samples.
        seed: of the values.
        sizes: of the axes that vary, by name; those left out are the call's own.
    """
    generator = np.random.default_rng(seed)
    sample = sample_name(call)
    specs = {spec.name: spec for spec in input_specs(call)}
    first = generator.standard_normal(
        sized(specs[sample].shape, batch, {**call.sizes, **(sizes or {})}), dtype=np.float32
    )
    times = _timesteps(call, batch, generator)
    others = random_conditions(call, batch, generator, sizes=sizes)
    every = {sample: first, "timestep": times, **others}
    return {name: every[name] for name in specs}


def _timesteps(call: Call, batch: int, generator: np.random.Generator) -> Array:
    limits = next((item.limits for item in call.inputs if item.name == "timestep"), None)
    if limits is not None:
        return generator.uniform(*limits, batch).astype(np.float32)
    return generator.integers(1, TRAIN_TIMESTEPS, batch).astype(np.float32)  # Fourier embeddings take their logarithm


def random_conditions(
    call: Call, batch: int, generator: np.random.Generator, *, sizes: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """Valid values of every input besides the sample and `timestep`.

    Whole numbers are drawn uniformly within the call's limits, embeddings from a normal distribution of unit variance;
    `time_ids` say that the picture has the sample's size and was not cropped.

    Args:
        call: of the denoiser.
        batch: number of samples.
        generator: where the numbers come from; drawn in the order of the inputs.
        sizes: of the axes that vary, by name; those left out are the call's own.
    """
    known = {**call.sizes, **(sizes or {})}
    left_out = (sample_name(call), "timestep")
    limits = {spec.name: item.limits for spec, item in zip(input_specs(call), call.inputs, strict=True)}
    return {
        spec.name: _drawn(spec, limits[spec.name], batch, generator, known)
        for spec in input_specs(call)
        if spec.name not in left_out
    }


def _drawn(
    spec: TensorSpec,
    limits: tuple[float, float] | None,
    batch: int,
    generator: np.random.Generator,
    sizes: Mapping[str, int],
) -> Array:
    shape = sized(spec.shape, batch, sizes)
    if spec.name == "time_ids" and shape[-1] == 6 and HEIGHT in sizes:
        height, width = (PIXELS_A_LATENT * sizes[size] for size in (HEIGHT, WIDTH))
        return np.tile(np.array([height, width, 0, 0, height, width], np.float32), (batch, 1))
    if spec.name.endswith("mask") or spec.dtype == "bool":
        return np.ones(shape, spec.dtype)
    if spec.dtype.startswith("int"):
        low, high = (0, 0) if limits is None else limits
        return generator.integers(int(low), int(high) + 1, shape, dtype=np.dtype(spec.dtype).type)
    if limits is not None:
        low, high = limits
        return generator.uniform(low, high, shape).astype(np.float32)
    return generator.standard_normal(shape, dtype=np.float32)
