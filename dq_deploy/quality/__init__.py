"""How good images are: distances to reference images, to real images, recognised share, and intervals around them."""

from __future__ import annotations

from dq_deploy.quality.bootstrap import (
    Interval,
    interval_of_mean,
    interval_of_paired_difference,
    interval_over_seeds,
)
from dq_deploy.quality.distribution import (
    KernelDistance,
    Spread,
    frechet_beside_reference,
    frechet_distance,
    frechet_interval,
    kernel_distance,
    real_against_real,
)
from dq_deploy.quality.extractors import CLASSIFIERS, EXTRACTORS, load_classifier, load_extractor
from dq_deploy.quality.features import FeatureExtractor
from dq_deploy.quality.image import SSIM_WINDOW, psnr_db, ssim
from dq_deploy.quality.table import (
    PSNR_CAP_DB,
    PerImage,
    QualityBaseline,
    QualityRow,
    quality_baseline,
    quality_row,
    row_of,
)

__all__ = [
    "CLASSIFIERS",
    "EXTRACTORS",
    "PSNR_CAP_DB",
    "SSIM_WINDOW",
    "FeatureExtractor",
    "Interval",
    "KernelDistance",
    "PerImage",
    "QualityBaseline",
    "QualityRow",
    "Spread",
    "frechet_beside_reference",
    "frechet_distance",
    "frechet_interval",
    "interval_of_mean",
    "interval_of_paired_difference",
    "interval_over_seeds",
    "kernel_distance",
    "load_classifier",
    "load_extractor",
    "psnr_db",
    "quality_baseline",
    "quality_row",
    "real_against_real",
    "row_of",
    "ssim",
]
