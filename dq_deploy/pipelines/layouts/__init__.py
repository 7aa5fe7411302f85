"""Folders that the pipelines of other tools load, with the integer denoiser in them."""

from dq_deploy.pipelines.layouts.optimum import WrittenFolder, write_optimum_folder

__all__ = ["WrittenFolder", "write_optimum_folder"]
