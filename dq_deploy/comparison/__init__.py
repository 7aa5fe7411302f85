"""Methods beside each other on one model: each quantizes in its own process, its record draws images on an engine."""

from __future__ import annotations

from dq_deploy.comparison.cell import Cell, cell_name, run_cell, with_quality
from dq_deploy.comparison.limits import check_engine
from dq_deploy.comparison.methods_in_turn import FILE_NAME, Comparison, check_layers, compare_methods, open_folder
from dq_deploy.comparison.real_images import read_real_images
from dq_deploy.comparison.settings import RUNNABLE, Settings, options_by_method
from dq_deploy.comparison.subject import Measures, Subject, prepare_subject
from dq_deploy.comparison.table import markdown, paired_psnr, row_of_cell

__all__ = [
    "FILE_NAME",
    "RUNNABLE",
    "Cell",
    "Comparison",
    "Measures",
    "Settings",
    "Subject",
    "cell_name",
    "check_engine",
    "check_layers",
    "compare_methods",
    "markdown",
    "open_folder",
    "options_by_method",
    "paired_psnr",
    "prepare_subject",
    "read_real_images",
    "row_of_cell",
    "run_cell",
    "with_quality",
]
