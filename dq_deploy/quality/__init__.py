"""How good images are: distances to reference images, recognised share, and intervals around both."""

from __future__ import annotations

from dq_deploy.quality.bootstrap import Interval, interval_of_mean, interval_of_paired_difference
from dq_deploy.quality.image import SSIM_WINDOW, psnr_db, ssim

__all__ = ["SSIM_WINDOW", "Interval", "interval_of_mean", "interval_of_paired_difference", "psnr_db", "ssim"]
