"""Valid values for what a denoiser is conditioned on, where there are no recorded ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dq_deploy.models.layers import TensorSpec
from dq_deploy.models.sizes import EXAMPLE_SIZES, sized
from dq_deploy.numerics.arrays import Array

PIXELS_A_LATENT = 8
"""Pixels of the picture along each side of a latent pixel, for the sizes in `time_ids`."""


def random_conditions(
    specs: Sequence[TensorSpec],
    config: Mapping[str, Any],
    batch: int,
    generator: np.random.Generator,
    sizes: Mapping[str, int] = EXAMPLE_SIZES,
) -> dict[str, Array]:
    """Valid values of every input besides `sample` and `timestep`.

    Class labels are drawn uniformly, embeddings from a normal distribution of unit variance; `time_ids` say that the
    picture has the model's own size and was not cropped.

    Args:
        specs: the denoiser's inputs.
        config: its diffusers configuration.
        batch: number of samples.
        generator: where the numbers come from; drawn in the order of the inputs.
        sizes: of the axes that vary, by name.
    """
    found: dict[str, Array] = {}
    for spec in specs:
        if spec.name == "class_labels":
            found[spec.name] = generator.integers(0, int(config["num_class_embeds"]), batch, dtype=np.int64)
        elif spec.name == "time_ids":
            height, width = (PIXELS_A_LATENT * int(size) for size in specs[0].shape[2:])
            found[spec.name] = np.tile(np.array([height, width, 0, 0, height, width], np.float32), (batch, 1))
        elif spec.name not in ("sample", "timestep"):
            found[spec.name] = generator.standard_normal(sized(spec.shape, batch, sizes), dtype=np.float32)
    return found
