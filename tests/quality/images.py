"""Tiny images and a tiny extractor for the tests of this folder."""

from __future__ import annotations

import numpy as np

from dq_deploy.quality import FeatureExtractor


def noisy_pair(count: int, *, channels: int = 1, size: int = 16, noise: float = 0.1):
    rng = np.random.default_rng(count)
    reference = rng.uniform(-1, 1, (count, channels, size, size)).astype(np.float32)
    images = np.clip(reference + noise * rng.standard_normal(reference.shape), -1, 1).astype(np.float32)
    return images, reference


def tiny_extractor(*, batch: int = 7, maps: bool = True) -> FeatureExtractor:
    """Two stages of pixels as maps, a random projection as features."""
    weights = np.random.default_rng(0).standard_normal((16 * 16, 6)).astype(np.float32)

    def run(x):
        grey = x.mean(axis=1).reshape(len(x), -1)
        return grey @ weights, ((np.concatenate([x, x * x], 1), x[:, :, ::2, ::2] + 0.5) if maps else ())

    return FeatureExtractor(
        name="tiny", frechet_name="FD-tiny", kernel_name="KD-tiny", dimension=6, has_maps=maps, network=run, batch=batch
    )
