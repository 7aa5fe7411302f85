"""One row of a quality table: what is known of one model's images beside the float model's from the same noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.errors import InputError
from dq_deploy.numerics.arrays import F64
from dq_deploy.quality.bootstrap import Interval, interval_of_mean, interval_of_paired_difference
from dq_deploy.quality.deep_distance import feature_distance
from dq_deploy.quality.distribution import (
    KernelDistance,
    Spread,
    frechet_beside_reference,
    frechet_copies,
    frechet_distance,
    kernel_distance,
    real_against_real,
)
from dq_deploy.quality.extractors import load_extractor
from dq_deploy.quality.features import FeatureExtractor
from dq_deploy.quality.image import SSIM_WINDOW, psnr_db, ssim

PSNR_CAP_DB = 100.0
"""An equal image has an infinite PSNR. A mean of dB needs a number for it: one byte off by one in a picture of
256 x 256 in colour is 101 dB, so beyond this a difference cannot be seen in any picture file of usual size."""

REAL_PER_IMAGE = 10
"""Most real images looked at for each image compared; more would not make the numbers better."""

Recognise = Callable[[NDArray[np.floating]], NDArray[np.integer]]
"""Images [N, C, H, W] in [-1, 1] to labels [N]."""


@dataclass(frozen=True, kw_only=True)
class PerImage:
    """One number an image, for paired differences between rows of one baseline; empty where not measured."""

    psnr_db: tuple[float, ...]
    ssim: tuple[float, ...] = ()
    feature_distance: tuple[float, ...] = ()
    recognised: tuple[bool, ...] = ()


@dataclass(frozen=True, kw_only=True)
class QualityRow:
    """What is known of one model's images; None where something is not measured (and why, in `not_measured`).

    Attributes:
        images: N, the images compared.
        extractor: name of the features, None without.
        frechet_name: what the Frechet distances may be called, as FD-EfficientNet-Lite0; FID for that alone.
        kernel_name: what the kernel distance may be called, as KD-EfficientNet-Lite0; KID for that alone.
        psnr_db: mean over the images of PSNR to the reference image, each capped at PSNR_CAP_DB.
        identical: images equal to their reference, in every bit.
        psnr_of_mean_error_db: PSNR of the mean squared error over all images, not capped, so None where all are
            identical; the worst images weigh most in it.
        ssim: mean structural similarity.
        feature_distance: mean deep-feature distance to the reference image, 0 for equal images.
        frechet_to_reference: Frechet distance of the images to the reference images.
        frechet: Frechet distance of the images to as many real images.
        frechet_of_reference: the same of the reference images.
        frechet_difference: `frechet` less `frechet_of_reference`, resampled together.
        real_against_real: Frechet distance between two halves of real images of the same size.
        frechet_images: images of each set in the three above and in `kernel`: half of the real ones where those are
            fewer than twice the images.
        kernel: kernel distance of the images to as many real images.
        recognised: share of the images whose recognised label is the asked one.
        recognised_of_reference: the same of the reference images.
        recognised_difference: paired difference of the two.
        per_image: the numbers behind the means.
        not_measured: column to the reason why it is empty.
    """

    images: int
    extractor: str | None
    frechet_name: str | None
    kernel_name: str | None
    psnr_db: Interval
    identical: int
    psnr_of_mean_error_db: float | None
    ssim: Interval | None
    feature_distance: Interval | None
    frechet_to_reference: float | None
    frechet: Interval | None
    frechet_of_reference: Interval | None
    frechet_difference: Interval | None
    real_against_real: Spread | None
    frechet_images: int | None
    kernel: KernelDistance | None
    recognised: Interval | None
    recognised_of_reference: Interval | None
    recognised_difference: Interval | None
    per_image: PerImage
    not_measured: dict[str, str]

    def as_json(self, *, per_image: bool = False) -> dict[str, Any]:
        """Everything as JSON values, no infinities; the numbers of each image only if asked for."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "per_image"}
        found = {
            name: value if value is None or isinstance(value, (int, float, str, dict)) else asdict(value)
            for name, value in found.items()
        }
        return found | ({"per_image": asdict(self.per_image)} if per_image else {})

    def columns(self) -> dict[str, str]:
        """Heading to text, for a printed table; what is not measured has no column."""
        distance, kernel = self.frechet_name, self.kernel_name
        percent = {
            "recognised, %": self.recognised,
            "recognised less reference's, %": self.recognised_difference,
        }
        found: dict[str, object | None] = {
            "PSNR, dB": f"{self.psnr_db.mean:.2f} [{self.psnr_db.low:.2f}, {self.psnr_db.high:.2f}]",
            "SSIM": self.ssim,
            f"feature distance ({self.extractor})": self.feature_distance,
            f"{distance} to reference": _short(self.frechet_to_reference),
            f"{distance} to real": self.frechet,
            f"{distance} less reference's": self.frechet_difference,
            f"{distance} real against real": self.real_against_real,
            kernel or "": self.kernel,
        }
        found |= {
            heading: x and f"{100 * x.mean:.1f} [{100 * x.low:.1f}, {100 * x.high:.1f}]"
            for heading, x in percent.items()
        }
        return {heading: str(value) for heading, value in found.items() if value is not None}


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


@dataclass(frozen=True, kw_only=True)
class QualityBaseline:
    """What rows are measured against, with everything that does not depend on the row worked out once.

    Made by `quality_baseline`.
    """

    reference: NDArray[np.floating]
    labels: NDArray[np.integer] | None
    recognise: Recognise | None
    extractor: FeatureExtractor | None
    reference_features: F64 | None
    real_features: F64 | None
    compared: NDArray[np.integer]
    reference_frechet: tuple[float, F64] | None
    real_against_real: Spread | None
    recognised: NDArray[np.bool_] | None
    data_range: float
    confidence: float
    seed: int


def _recognised(
    images: NDArray[np.floating], labels: NDArray[np.integer] | None, recognise: Recognise | None
) -> NDArray[np.bool_] | None:
    if labels is None or recognise is None:
        return None
    found = np.asarray(recognise(images))
    if found.shape != labels.shape:
        raise InputError(f"the classifier gave labels {found.shape} for {len(images)} images, expected one an image")
    return np.asarray(found == labels, np.bool_)


def _checked_labels(labels: Any, recognise: Recognise | None, count: int) -> NDArray[np.integer] | None:
    if (labels is None) != (recognise is None):
        raise InputError("got only one of labels and a classifier; expected both, or neither to leave the share out")
    if labels is None:
        return None
    found = np.asarray(labels)
    if found.shape != (count,) or not np.issubdtype(found.dtype, np.integer):
        raise InputError(f"labels are {found.dtype} {found.shape}, expected one integer for each of {count} images")
    return found


def quality_baseline(
    reference_images: NDArray[np.floating],
    *,
    real: NDArray[np.floating] | None = None,
    labels: NDArray[np.integer] | None = None,
    recognise: Recognise | None = None,
    extractor: FeatureExtractor | str | None = "efficientnet-lite0",
    data_range: float = 2.0,
    confidence: float = 0.95,
    seed: int = 0,
) -> QualityBaseline:
    """The reference, prepared once for all rows of a table; arguments and errors as `quality_row`."""
    reference = np.asarray(reference_images)
    if reference.ndim != 4 or len(reference) < 2 or not np.isfinite(reference).all():
        raise InputError(f"reference images are {reference.shape}, expected at least two finite [N, C, H, W]")
    asked = _checked_labels(labels, recognise, len(reference))
    network = load_extractor(extractor) if isinstance(extractor, str) else extractor
    compared = np.arange(len(reference))
    reference_features = real_features = spread = reference_frechet = None
    if network is not None:
        reference_features = network.features(reference)
    if network is not None and reference_features is not None and real is not None:
        rng = np.random.default_rng(seed)
        chosen = np.asarray(real)
        if len(chosen) < 8 or len(reference) < 4:
            raise InputError(
                f"got {len(chosen)} real images and {len(reference)} to compare with them, expected at least 8 and 4, "
                "better twice as many real ones"
            )
        if len(chosen) > REAL_PER_IMAGE * len(reference):
            chosen = chosen[np.sort(rng.choice(len(chosen), REAL_PER_IMAGE * len(reference), replace=False))]
        every = network.features(chosen)
        count = min(len(reference), len(every) // 2)
        compared = np.sort(rng.choice(len(reference), count, replace=False))
        real_features = every[np.sort(rng.choice(len(every), count, replace=False))]
        spread = real_against_real(every, count=count, seed=seed)
        reference_frechet = frechet_copies(reference_features[compared], real_features, seed=seed)
    return QualityBaseline(
        reference=reference,
        labels=asked,
        recognise=recognise,
        extractor=network,
        reference_features=reference_features,
        real_features=real_features,
        compared=compared,
        reference_frechet=reference_frechet,
        real_against_real=spread,
        recognised=_recognised(reference, asked, recognise),
        data_range=data_range,
        confidence=confidence,
        seed=seed,
    )


def _reasons(baseline: QualityBaseline) -> dict[str, str]:
    network, found = baseline.extractor, {}
    if min(baseline.reference.shape[2:]) < SSIM_WINDOW:
        found["ssim"] = f"images smaller than {SSIM_WINDOW} x {SSIM_WINDOW}"
    if network is None:
        found |= dict.fromkeys(("feature_distance", "frechet_to_reference", "frechet", "kernel"), "no extractor")
    elif baseline.real_features is None:
        found |= dict.fromkeys(("frechet", "kernel"), "no real images")
    if network is not None and not network.has_maps:
        found["feature_distance"] = f"{network.name} gives no feature maps"
    if baseline.recognised is None:
        found["recognised"] = "no classifier"
    return found


def _feature_columns(baseline: QualityBaseline, images: NDArray[np.floating]) -> tuple[dict[str, Any], F64 | None]:
    """The columns made of features, and the feature distance of each image."""
    network = baseline.extractor
    if network is None or baseline.reference_features is None:
        return {}, None
    if network.has_maps:
        distances, features = feature_distance(network, images, baseline.reference)
    else:
        distances, features = None, network.features(images)
    found: dict[str, Any] = {
        "extractor": network.name,
        "frechet_name": network.frechet_name,
        "kernel_name": network.kernel_name,
        "frechet_to_reference": frechet_distance(features, baseline.reference_features),
    }
    if baseline.real_features is not None:
        options: dict[str, Any] = {"confidence": baseline.confidence, "seed": baseline.seed}
        a, r, real = features[baseline.compared], baseline.reference_features[baseline.compared], baseline.real_features
        own, of_reference, difference = frechet_beside_reference(
            a, r, real, **options, of_reference=baseline.reference_frechet
        )
        found |= {
            "frechet": own,
            "frechet_of_reference": of_reference,
            "frechet_difference": difference,
            "real_against_real": baseline.real_against_real,
            "frechet_images": len(real),
            "kernel": kernel_distance(a, real, **options),
        }
    return found, distances


def row_of(baseline: QualityBaseline, images: NDArray[np.floating]) -> QualityRow:
    """The row of one model's images, image i from the noise and label of reference image i.

    Raises:
        InputError: another shape than the reference images, or values that are not finite.
    """
    x, reference = np.asarray(images), baseline.reference
    if x.shape != reference.shape or not np.isfinite(x).all():
        raise InputError(f"images are {x.shape}, or not finite; expected finite {reference.shape} as the reference")
    options: dict[str, Any] = {"confidence": baseline.confidence, "seed": baseline.seed}
    psnr = psnr_db(x, reference, data_range=baseline.data_range)
    capped = np.minimum(psnr, PSNR_CAP_DB)
    error = float(np.mean(baseline.data_range**2 * 10 ** (-psnr / 10)))
    reasons = _reasons(baseline)
    similarity = None if "ssim" in reasons else ssim(x, reference, data_range=baseline.data_range)
    columns, distances = _feature_columns(baseline, x)
    right = _recognised(x, baseline.labels, baseline.recognise)
    if right is not None and baseline.recognised is not None:
        columns |= {
            "recognised": interval_of_mean(right, **options),
            "recognised_of_reference": interval_of_mean(baseline.recognised, **options),
            "recognised_difference": interval_of_paired_difference(right, baseline.recognised, **options),
        }
    columns |= {
        "images": len(x),
        "psnr_db": interval_of_mean(capped, **options),
        "identical": int(np.isinf(psnr).sum()),
        "psnr_of_mean_error_db": float(10 * np.log10(baseline.data_range**2 / error)) if error else None,
        "ssim": None if similarity is None else interval_of_mean(similarity, **options),
        "feature_distance": None if distances is None else interval_of_mean(distances, **options),
        "not_measured": reasons,
        "per_image": PerImage(
            psnr_db=tuple(capped.tolist()),
            ssim=() if similarity is None else tuple(similarity.tolist()),
            feature_distance=() if distances is None else tuple(distances.tolist()),
            recognised=() if right is None else tuple(right.tolist()),
        ),
    }
    unmeasured: dict[str, Any] = {field.name: None for field in fields(QualityRow)}
    return QualityRow(**(unmeasured | columns))


def quality_row(
    images: NDArray[np.floating],
    reference_images: NDArray[np.floating],
    *,
    real: NDArray[np.floating] | None = None,
    labels: NDArray[np.integer] | None = None,
    recognise: Recognise | None = None,
    extractor: FeatureExtractor | str | None = "efficientnet-lite0",
    data_range: float = 2.0,
    confidence: float = 0.95,
    seed: int = 0,
) -> QualityRow:
    """All measures of one model's images; for several models make a `quality_baseline` and call `row_of`.

    Args:
        images: [N, C, H, W] floats in [-1, 1], N >= 2.
        reference_images: same shape: the float model's images from the same noise and labels.
        real: [M, C, H', W'] real images in [-1, 1]; M >= 2 N, else fewer images are compared with them.
        labels: [N] integers asked for; with `recognise`.
        recognise: images to labels, as `load_classifier` gives.
        extractor: one from `load_extractor`, or its specification; None leaves all feature columns out.
        data_range: highest minus lowest value an image can have.
        confidence: of every interval.
        seed: of every resampling and choice; the same seed chooses the same images for every row.

    Raises:
        InputError: shapes that do not fit, values that are not finite, or too few images.
        MissingDependencyError: the extractor's package is not installed.
        FileProblemError: the extractor's file cannot be used.
    """
    baseline = quality_baseline(
        reference_images,
        real=real,
        labels=labels,
        recognise=recognise,
        extractor=extractor,
        data_range=data_range,
        confidence=confidence,
        seed=seed,
    )
    return row_of(baseline, images)
