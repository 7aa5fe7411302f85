"""Distances between two sets of features: Frechet and kernel, each with an interval.

Both are between the sets, not the images: they see missing variety, which a distance image by image does not.
A Frechet distance from N images is too large, by about c / N with c depending on the data: it compares only with
one from the same number of images, and a distance of 0 is not to be had. `real_against_real` is what two sets of
real images of that size have, so the value to aim at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from dq_deploy.errors import InputError
from dq_deploy.numerics.arrays import F64
from dq_deploy.quality.bootstrap import Interval

FRECHET_RESAMPLES = 100
KERNEL_RESAMPLES = 1000
KERNEL_IMAGES = 2000
KERNEL_SUBSETS = 100


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A number measured on several random splits of one set, which overlap: sd is a little too small.

    Attributes:
        mean: over the splits.
        sd: sample standard deviation over the splits.
        splits: how many.
        count: images in each half of a split.
    """

    mean: float
    sd: float
    splits: int
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} (sd {self.sd:.3f})"


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """A squared maximum mean discrepancy: unbiased, so it is about 0, or below, for equal distributions.

    Attributes:
        interval: the distance over all images and its bootstrap interval.
        subset_sd: sample standard deviation over random subsets, the figure usually printed behind the sign.
        subset_size: images of each set in a subset.
        subsets: how many.
    """

    interval: Interval
    subset_sd: float
    subset_size: int
    subsets: int

    def __str__(self) -> str:
        return f"{self.interval.mean:.5f} [{self.interval.low:.5f}, {self.interval.high:.5f}]"


@dataclass(frozen=True, kw_only=True)
class _Gaussian:
    """Mean [D], trace of the covariance C, and F [min(N, D), D] with F^T F = C."""

    mean: F64
    trace: float
    factor: F64


def _checked(*sets: NDArray[np.floating]) -> list[F64]:
    arrays = [np.asarray(x, np.float64) for x in sets]
    shapes = ", ".join(str(x.shape) for x in arrays)
    if any(x.ndim != 2 or len(x) < 2 or x.shape[1:] != arrays[0].shape[1:] for x in arrays):
        raise InputError(f"feature sets are {shapes}, expected [N, D] with one D and at least two images each")
    if not all(np.isfinite(x).all() for x in arrays):
        raise InputError(f"feature sets {shapes} hold values that are not finite")
    return arrays


def _gaussian(x: F64, copies: NDArray[np.int64] | None = None) -> _Gaussian:
    """Mean and unbiased covariance of the rows, row i taken copies[i] times."""
    if copies is not None:
        kept = copies > 0
        x, weights = x[kept], copies[kept].astype(np.float64)
    else:
        weights = np.ones(len(x))
    total = weights.sum()
    mean = weights @ x / total
    factor = (x - mean) * np.sqrt(weights / (total - 1))[:, None]
    trace = float((factor * factor).sum())
    if len(factor) > factor.shape[1]:  # fewer features than images: a square factor will do
        values, vectors = np.linalg.eigh(factor.T @ factor)
        factor = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    return _Gaussian(mean=mean, trace=trace, factor=factor)


def _frechet(a: _Gaussian, b: _Gaussian) -> float:
    # C_a C_b = F_a^T F_a F_b^T F_b has the eigenvalues of (F_a F_b^T)(F_a F_b^T)^T and zeros, whose square roots
    # are the singular values of F_a F_b^T: exact for covariances of any rank, and small where images are few
    cross = np.linalg.svd(a.factor @ b.factor.T, compute_uv=False).sum()
    difference = a.mean - b.mean
    return max(0.0, float(difference @ difference + a.trace + b.trace - 2 * cross))


def frechet_distance(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Frechet distance of the Gaussians with the sets' means and covariances (Dowson and Landau, 1982).

    |mu_x - mu_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), covariances over N - 1, in float64. It is exact where
    there are fewer images than features, too; but it is biased upwards, see the head of this file.

    Args:
        x: [N, D] features.
        y: [M, D] features.

    Raises:
        InputError: fewer than two images, another D, or values that are not finite.
    """
    a, b = _checked(x, y)
    return _frechet(_gaussian(a), _gaussian(b))


def _around(value: float, copies: F64, count: int, confidence: float, lowest: float) -> Interval:
    _check_confidence(confidence)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * float(copies.std(ddof=1))
    return Interval(mean=value, low=max(lowest, value - half), high=value + half, confidence=confidence, count=count)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"got confidence {confidence}, expected a number between 0 and 1")


def _resampling(count: int, resamples: int, rng: np.random.Generator) -> NDArray[np.int64]:
    if resamples < 2:
        raise InputError(f"got {resamples} resamples, expected at least 2")
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples)


def frechet_interval(
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    *,
    confidence: float = 0.95,
    resamples: int = FRECHET_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The Frechet distance and value -/+ z times the standard deviation of its bootstrap copies.

    Both sets are resampled. A copy holds fewer distinct images, so the copies lie above the value by about the
    value's own bias; hence not their percentiles, only their spread is used (Efron and Tibshirani, 1993, chapter
    13.3). The interval says how far the value would move with other images of the same number; it does not take
    out the bias. It errs on the wide side where the distributions are close: two to three times too wide for equal
    ones (Gaussians with the covariance of EfficientNet features, 500 images).

    Args:
        x: [N, D] features.
        y: [M, D] features.
        confidence: in (0, 1).
        resamples: bootstrap copies.
        seed: of the resampling.

    Raises:
        InputError: as `frechet_distance`.
    """
    value, copies = frechet_copies(x, y, resamples=resamples, seed=seed)
    return _around(value, copies, len(x), confidence, 0.0)


def frechet_copies(
    x: NDArray[np.floating], y: NDArray[np.floating], *, resamples: int = FRECHET_RESAMPLES, seed: int = 0
) -> tuple[float, F64]:
    """The Frechet distance and its bootstrap copies [resamples]; sets of the same lengths are resampled alike.

    Args:
        x: [N, D] features.
        y: [M, D] features.
        resamples: bootstrap copies.
        seed: of the resampling.

    Raises:
        InputError: as `frechet_distance`, or fewer than two resamples.
    """
    a, b = _checked(x, y)
    rng = np.random.default_rng(seed)
    draws_a = _resampling(len(a), resamples, rng)
    draws_b = _resampling(len(b), resamples, rng)
    copies = [_frechet(_gaussian(a, i), _gaussian(b, j)) for i, j in zip(draws_a, draws_b, strict=True)]
    return frechet_distance(a, b), np.array(copies)


def frechet_beside_reference(
    x: NDArray[np.floating],
    x_reference: NDArray[np.floating],
    y: NDArray[np.floating],
    *,
    confidence: float = 0.95,
    resamples: int = FRECHET_RESAMPLES,
    seed: int = 0,
    of_reference: tuple[float, F64] | None = None,
) -> tuple[Interval, Interval, Interval]:
    """Frechet distances to y of x, of x_reference, and the first less the second, each as in `frechet_interval`.

    Image i of x and of x_reference are from the same noise and are resampled together, so the difference has a
    narrower interval than either; both biases are about the same and cancel in it. That interval was 1.3 to 1.6
    times too wide on the Gaussians of `frechet_interval`.

    Args:
        x: [N, D] features.
        x_reference: [N, D] features.
        y: [M, D] features.
        confidence: in (0, 1).
        resamples: bootstrap copies.
        seed: of the resampling.
        of_reference: `frechet_copies` of x_reference and y with these resamples and seed, where they are known.

    Raises:
        InputError: as `frechet_distance`, or x and x_reference have different lengths.
    """
    if len(x) != len(x_reference):
        raise InputError(f"got features of {len(x)} images and of {len(x_reference)} references, expected pairs")
    drawn: dict[str, int] = {"resamples": resamples, "seed": seed}
    own, copies = frechet_copies(x, y, **drawn)
    reference, reference_copies = of_reference or frechet_copies(x_reference, y, **drawn)
    return (
        _around(own, copies, len(x), confidence, 0.0),
        _around(reference, reference_copies, len(x), confidence, 0.0),
        _around(own - reference, copies - reference_copies, len(x), confidence, -math.inf),
    )


def real_against_real(real: NDArray[np.floating], *, count: int, splits: int = 5, seed: int = 0) -> Spread:
    """Frechet distance between two disjoint random sets of `count` real images, over several such splits.

    Args:
        real: [M, D] features of real images, M >= 2 count.
        count: images in each set: as many as in the distance it is set beside.
        splits: how many splits.
        seed: of the splits.

    Raises:
        InputError: too few real images.
    """
    (features,) = _checked(real)
    if count < 2 or len(features) < 2 * count or splits < 2:
        raise InputError(
            f"got {len(features)} real images, {splits} splits and {count} images a half; expected at least 2 splits "
            "of halves of at least 2 images, and twice as many real images"
        )
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(splits):
        order = rng.permutation(len(features))
        found.append(frechet_distance(features[order[:count]], features[order[count : 2 * count]]))
    return Spread(mean=float(np.mean(found)), sd=float(np.std(found, ddof=1)), splits=splits, count=count)


def _discrepancy(weights: tuple[F64, F64], kernels: tuple[F64, F64, F64]) -> F64:
    """Unbiased squared MMD for rows of weights [R, N] and [R, M]; an image is never paired with itself.

    NaN for a row whose weight is all on one image.
    """
    (w, v), (k_xx, k_yy, k_xy) = weights, kernels

    def within(weight: F64, kernel: F64) -> F64:
        square = weight * weight
        pairs = ((weight @ kernel) * weight).sum(1) - square @ np.diag(kernel)
        with np.errstate(invalid="ignore"):  # a copy of one image alone has no pairs
            return np.asarray(pairs / (weight.sum(1) ** 2 - square.sum(1)), np.float64)

    across = ((w @ k_xy) * v).sum(1) / (w.sum(1) * v.sum(1))
    return np.asarray(within(w, k_xx) + within(v, k_yy) - 2 * across, np.float64)


def _cubic(x: F64, y: F64) -> F64:
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3, np.float64)


def _members(count: int, size: int, subsets: int, rng: np.random.Generator) -> F64:
    """Ones at the members of each random subset: [subsets, count]."""
    return rng.permuted(np.tile((np.arange(count) < size) * 1.0, (subsets, 1)), axis=1)


def kernel_distance(
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    *,
    confidence: float = 0.95,
    resamples: int = KERNEL_RESAMPLES,
    subsets: int = KERNEL_SUBSETS,
    subset_size: int | None = None,
    images: int = KERNEL_IMAGES,
    seed: int = 0,
) -> KernelDistance:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski et al., 2018, arXiv 1801.01401).

    The value is over all pairs. Its interval is the percentile bootstrap, copies of one image never paired with
    each other, which keeps a copy as unbiased as the value; where both distributions are equal it is too wide.

    Args:
        x: [N, D] features.
        y: [M, D] features.
        confidence: in (0, 1).
        resamples: bootstrap copies.
        subsets: random subsets, without replacement, for `subset_sd`.
        subset_size: images in a subset; None takes half of the smaller set, at most 1000.
        images: most images of a set that are used; a larger set is cut to a random choice.
        seed: of the choices.

    Raises:
        InputError: fewer than four images, another D, or values that are not finite.
    """
    a, b = _checked(x, y)
    rng = np.random.default_rng(seed)
    a, b = (s if len(s) <= images else s[np.sort(rng.choice(len(s), images, replace=False))] for s in (a, b))
    smallest = min(len(a), len(b))
    size = min(1000, smallest // 2) if subset_size is None else subset_size
    if not 2 <= size <= smallest or subsets < 2:
        raise InputError(
            f"got sets of {len(a)} and {len(b)} images and {subsets} subsets of {size}; expected at least 2 subsets of "
            "at least 2 images, and sets no smaller than a subset (four images without a subset size)"
        )
    kernels = _cubic(a, a), _cubic(b, b), _cubic(a, b)
    value = float(_discrepancy((np.ones((1, len(a))), np.ones((1, len(b)))), kernels)[0])
    _check_confidence(confidence)
    draws_a, draws_b = _resampling(len(a), resamples, rng), _resampling(len(b), resamples, rng)
    weights = draws_a.astype(np.float64), draws_b.astype(np.float64)
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(_discrepancy(weights, kernels), [tail, 100 - tail])
    members = _members(len(a), size, subsets, rng), _members(len(b), size, subsets, rng)
    return KernelDistance(
        interval=Interval(mean=value, low=float(low), high=float(high), confidence=confidence, count=len(a)),
        subset_sd=float(np.std(_discrepancy(members, kernels), ddof=1)),
        subset_size=size,
        subsets=subsets,
    )
