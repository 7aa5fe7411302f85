"""Percentile bootstrap intervals of means (Efron and Tibshirani, 1993, chapter 13)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dq_deploy.errors import InputError

RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean, or a distance between sets, and its bootstrap interval.

    Attributes:
        mean: of the values, or the distance itself.
        low: lower end.
        high: upper end; low <= mean <= high but for rounding.
        confidence: share of the bootstrap copies inside, as 0.95.
        count: number of values, or of images in the first set.
    """

    mean: float
    low: float
    high: float
    confidence: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval_of_mean(
    values: Sequence[float] | NDArray[np.generic],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of the mean.

    Args:
        values: [N] finite numbers, or booleans for a share.
        confidence: in (0, 1).
        resamples: number of bootstrap copies.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        InputError: no values, or a value that is not finite.
    """
    x = np.asarray(values, np.float64).reshape(-1)
    if not x.size or not np.isfinite(x).all():
        raise InputError(f"got {x.size} values, some not finite or none at all; expected finite numbers")
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}, expected a number between 0 and 1")
    rng = np.random.default_rng(seed)
    means = np.array([x[rng.integers(0, x.size, x.size)].mean() for _ in range(resamples)])
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(mean=math.fsum(x) / x.size, low=float(low), high=float(high), confidence=confidence, count=x.size)


def interval_of_paired_difference(
    values: Sequence[float] | NDArray[np.generic],
    baseline: Sequence[float] | NDArray[np.generic],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of mean(values - baseline), resampling pairs together.

    Args:
        values: [N] finite numbers.
        baseline: [N], entry i measured on the same noise as values[i].
        confidence: in (0, 1).
        resamples: number of bootstrap copies.
        seed: of the resampling.

    Raises:
        InputError: the lengths differ, or a value is not finite.
    """
    a, b = np.asarray(values, np.float64).reshape(-1), np.asarray(baseline, np.float64).reshape(-1)
    if a.shape != b.shape:
        raise InputError(f"got {a.size} values and {b.size} to compare with, expected pairs")
    return interval_of_mean(a - b, confidence=confidence, resamples=resamples, seed=seed)


def interval_over_seeds(
    values: Sequence[Sequence[float]] | NDArray[np.generic],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of the mean over training seeds and images: both are resampled, apart from each other.

    Every copy takes as many seeds and as many images as there are, each with replacement (Owen, 2007, "The pigeonhole
    bootstrap"). With few seeds the interval is a rough one.

    Args:
        values: [S, N] finite numbers, S >= 2: of each seed the same N images.
        confidence: in (0, 1).
        resamples: number of bootstrap copies.
        seed: of the resampling.

    Raises:
        InputError: fewer than two seeds, no images, or a value that is not finite.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 2 or x.shape[0] < 2 or not x.shape[1] or not np.isfinite(x).all():
        raise InputError(f"got values of shape {x.shape}, or not finite; expected finite numbers [seeds >= 2, images]")
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}, expected a number between 0 and 1")
    rng = np.random.default_rng(seed)
    seeds, images = x.shape
    means = []
    for _ in range(resamples):
        rows, columns = rng.integers(0, seeds, seeds), rng.integers(0, images, images)
        means.append(x[rows].mean(0)[columns].mean())
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    mean = math.fsum(x.flat) / x.size
    return Interval(mean=mean, low=float(low), high=float(high), confidence=confidence, count=x.size)
