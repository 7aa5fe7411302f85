"""A distance between paired images in a network's feature maps, one number an image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dq_deploy.errors import InputError
from dq_deploy.numerics.arrays import F32, F64
from dq_deploy.quality.features import FeatureExtractor, checked_images


def _unit(features: F32) -> F64:
    """Each position's channel vector at length 1; a vector of zeros stays zero."""
    x = features.astype(np.float64)
    return np.asarray(x / np.maximum(np.sqrt((x * x).sum(axis=1, keepdims=True)), 1e-10), np.float64)


def distance_of_maps(maps: tuple[F32, ...], reference: tuple[F32, ...]) -> F64:
    """Squared distance of unit vectors, mean over positions, then over the stages: [B] in [0, 4].

    In the manner of Zhang et al. (2018, arXiv 1801.03924), without their learned channel weights, so this is not
    LPIPS and its numbers do not compare with LPIPS.
    """
    pairs = zip(maps, reference, strict=True)
    stages = [((_unit(a) - _unit(b)) ** 2).sum(axis=1).mean(axis=(1, 2)) for a, b in pairs]
    return np.asarray(np.mean(stages, axis=0), np.float64)


def feature_distance(
    extractor: FeatureExtractor, images: NDArray[np.floating], reference: NDArray[np.floating]
) -> tuple[F64, F64]:
    """The deep distance of each pair and, as they fall out of the same run, the features of `images`.

    Args:
        extractor: a network with feature maps.
        images: [N, C, H, W] in [-1, 1].
        reference: same shape.

    Returns:
        distances [N] float64 in [0, 4], 0 where an image equals its reference; features [N, D] float64.

    Raises:
        InputError: the shapes differ, or the extractor gives no maps.
    """
    if np.shape(images) != np.shape(reference):
        raise InputError(f"images have shapes {np.shape(images)} and {np.shape(reference)}, expected one shape")
    if not extractor.has_maps:
        raise InputError(f"{extractor.name} gives no feature maps; choose another extractor for the feature distance")
    x, y = checked_images(images), checked_images(reference)
    distances, features = [], []
    for i in range(0, len(x), extractor.batch):
        found, maps = extractor.outputs(x[i : i + extractor.batch])
        features.append(found)
        distances.append(distance_of_maps(maps, extractor.maps(y[i : i + extractor.batch])))
    return np.concatenate(distances), np.concatenate(features).astype(np.float64)
