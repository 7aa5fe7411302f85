"""What a feature extractor is: images in, one feature vector and a few feature maps an image out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.errors import InputError
from dq_deploy.numerics.arrays import F32, F64

if TYPE_CHECKING:
    from torch import Tensor


Outputs = tuple[F32, tuple[F32, ...]]
"""Features [B, D] and feature maps, each [B, C_i, H_i, W_i], from the finest to the coarsest."""


@dataclass(frozen=True, kw_only=True)
class FeatureExtractor:
    """A network whose features images are compared in; its name is part of every number it gives.

    Attributes:
        name: as in `feature distance (EfficientNet-Lite0)`.
        frechet_name: of the Frechet distance of these features; `FID` only for the verified Inception weights.
        kernel_name: of the kernel distance of these features; `KID` only for the same.
        dimension: D, or None where the network does not say before it has run.
        has_maps: whether the network gives feature maps.
        network: [B, C, H, W] float32 in [-1, 1], C 1 or 3, to features and maps.
        batch: images at a time.
    """

    name: str
    frechet_name: str
    kernel_name: str
    dimension: int | None
    has_maps: bool
    network: Callable[[F32], Outputs]
    batch: int = 50

    def outputs(self, images: NDArray[np.floating]) -> Outputs:
        """Features [B, D] and maps of images that are few enough to be taken at once.

        Raises:
            InputError: images of a wrong shape or type, or features that are not finite.
        """
        features, maps = self.network(checked_images(images))
        if features.ndim != 2 or len(features) != len(images) or not np.isfinite(features).all():
            raise InputError(
                f"{self.name} gave features {features.shape} for {len(images)} images, or some not finite; "
                "expected finite [N, D]"
            )
        return features, maps

    def features(self, images: NDArray[np.floating]) -> F64:
        """Features of any number of images: [N, C, H, W] in [-1, 1] to [N, D] float64.

        Raises:
            InputError: no images, or images of a wrong shape or type.
        """
        x = checked_images(images)
        return np.concatenate([self.outputs(x[i : i + self.batch])[0] for i in range(0, len(x), self.batch)]).astype(
            np.float64
        )

    def maps(self, images: NDArray[np.floating]) -> tuple[F32, ...]:
        """Feature maps of images that are few enough to be taken at once.

        Raises:
            InputError: the network gives no maps, or images of a wrong shape or type.
        """
        if not self.has_maps:
            raise InputError(f"{self.name} gives no feature maps; choose another extractor for the feature distance")
        return self.outputs(images)[1]


def checked_images(images: NDArray[Any]) -> F32:
    """The images as float32, values beyond -1 and 1 cut off as a picture file does.

    Raises:
        InputError: not [N, C, H, W] with N > 0 and C 1 or 3, not floating point, or not finite.
    """
    x = np.asarray(images)
    if x.ndim != 4 or not x.size or x.shape[1] not in (1, 3):
        raise InputError(f"images are {x.shape}, expected [N, C, H, W] with 1 or 3 channels (decode latents first)")
    if not np.issubdtype(x.dtype, np.floating) or not np.isfinite(x).all():
        raise InputError(f"images are {x.dtype}, or some values are not finite; expected finite floats in [-1, 1]")
    checked: F32 = np.clip(x, -1, 1).astype(np.float32, copy=False)
    return checked


def as_rgb(images: F32) -> F32:
    """Grey images with their channel three times: [N, 1 or 3, H, W] to [N, 3, H, W]."""
    return np.repeat(images, 3, axis=1) if images.shape[1] == 1 else images


def resized(images: F32, height: int, width: int) -> Tensor:
    """Bilinearly resized images, averaged over the source pixels where they shrink: [N, C, height, width]."""
    import torch
    from torch.nn import functional

    x = torch.from_numpy(np.ascontiguousarray(images))
    if x.shape[2:] == (height, width):
        return x
    shrinks = height < x.shape[2] or width < x.shape[3]
    return functional.interpolate(x, size=(height, width), mode="bilinear", align_corners=False, antialias=shrinks)
