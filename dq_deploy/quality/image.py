"""Distances between images, one number an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.errors import InputError
from dq_deploy.numerics.arrays import F32, F64

SSIM_SIGMA = 1.5
SSIM_RADIUS = 5
SSIM_WINDOW = 2 * SSIM_RADIUS + 1


def _pairs(images: NDArray[np.generic], reference: NDArray[np.generic], data_range: float) -> tuple[F64, F64]:
    a, b = np.asarray(images, np.float64), np.asarray(reference, np.float64)
    if a.shape != b.shape or a.ndim != 4:
        raise InputError(f"images have shapes {a.shape} and {b.shape}, expected one shape [N, C, H, W]")
    if not (math.isfinite(data_range) and data_range > 0):
        raise InputError(f"data_range is {data_range}, expected the positive width of the images' value range")
    return a, b


def psnr_db(images: NDArray[np.generic], reference: NDArray[np.generic], *, data_range: float) -> F64:
    """Peak signal-to-noise ratio of each image: 10 log10(data_range^2 / mean squared error).

    Args:
        images: [N, C, H, W], any number type.
        reference: same shape.
        data_range: highest minus lowest possible value; 2 for [-1, 1], 255 for bytes.

    Returns:
        [N] float64 in dB; infinity where an image equals its reference.

    Raises:
        InputError: shapes differ, or the range is not positive.
    """
    a, b = _pairs(images, reference, data_range)
    error = ((a - b) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(data_range**2 / error), np.float64)


def _gaussian_window() -> F64:
    offsets = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=np.float64)
    window = np.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    return np.asarray(window / window.sum(), np.float64)


def _blur(x: F64) -> F64:
    """Gaussian mean over every whole 11 x 11 window: [..., H, W] to [..., H - 10, W - 10]."""
    window = _gaussian_window()
    for axis in (-2, -1):
        x = np.lib.stride_tricks.sliding_window_view(x, len(window), axis=axis) @ window
    return x


def ssim(images: NDArray[np.generic], reference: NDArray[np.generic], *, data_range: float) -> F64:
    """Structural similarity of each image (Wang et al., 2004, doi 10.1109/TIP.2003.819861).

    Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, population covariances, mean over the
    windows that lie whole inside the image and over the channels.

    Args:
        images: [N, C, H, W], H and W at least 11.
        reference: same shape.
        data_range: highest minus lowest possible value; 2 for [-1, 1], 255 for bytes.

    Returns:
        [N] float64, 1 where an image equals its reference.

    Raises:
        InputError: shapes differ, images smaller than the window, or the range is not positive.
    """
    a, b = _pairs(images, reference, data_range)
    smallest = 2 * SSIM_RADIUS + 1
    if min(a.shape[2:]) < smallest:
        raise InputError(f"images are {a.shape[2]} x {a.shape[3]}, expected at least {smallest} each way for SSIM")
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a**2
    var_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return np.asarray((luminance * structure).mean(axis=(1, 2, 3)), np.float64)


@dataclass(frozen=True, kw_only=True)
class ImageDistance:
    """One image beside its reference; no SSIM where it is smaller than the window."""

    caption: str
    psnr_db: float
    ssim: float | None


@dataclass(frozen=True, kw_only=True)
class ImageDistances:
    """Images beside their references, one by one.

    Attributes:
        data_range: largest less smallest value that an image can have.
        images: each one.
        mean_psnr_db: over the images that are not identical to their references; None where all are.
        identical_images: how many are.
        mean_ssim: over all images, or None.
    """

    data_range: float
    images: tuple[ImageDistance, ...]
    mean_psnr_db: float | None
    identical_images: int
    mean_ssim: float | None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "images": [asdict(image) for image in self.images]}


def image_distances(images: F32, reference: F32, captions: Sequence[str], *, data_range: float) -> ImageDistances:
    """PSNR and SSIM of each image.

    Args:
        images: [N, C, H, W].
        reference: of the same shape.
        captions: of each image.
        data_range: largest less smallest value that an image can have.
    """
    psnr = psnr_db(images, reference, data_range=data_range)
    similarity = ssim(images, reference, data_range=data_range) if min(images.shape[2:]) >= SSIM_WINDOW else None
    differing = psnr[np.isfinite(psnr)]
    return ImageDistances(
        data_range=data_range,
        images=tuple(
            ImageDistance(
                caption=caption,
                psnr_db=float(psnr[i]),
                ssim=None if similarity is None else float(similarity[i]),
            )
            for i, caption in enumerate(captions)
        ),
        mean_psnr_db=float(differing.mean()) if len(differing) else None,
        identical_images=int(len(psnr) - len(differing)),
        mean_ssim=None if similarity is None else float(similarity.mean()),
    )
