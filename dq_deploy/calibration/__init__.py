"""Which inputs a method sees, and how they are collected."""

from __future__ import annotations

from dq_deploy.calibration.alignment import FEATURE_TRAJECTORIES, StepAlignment, align_steps, features_of_run
from dq_deploy.calibration.choice import StepChoice, choose_steps, counts_of_steps, normal_biased_weights
from dq_deploy.calibration.recorded import (
    CALIBRATIONS,
    CalibrationInputs,
    CalibrationSource,
    read_inputs,
    read_source,
    recorded_inputs,
    rows_in_turn,
)
from dq_deploy.calibration.schedulers import build_scheduler, noise_levels
from dq_deploy.calibration.trajectory import (
    Trajectory,
    build_ddim,
    collect_trajectory,
    output_influence,
    random_trajectory,
    sampling_timesteps,
)

__all__ = [
    "CALIBRATIONS",
    "FEATURE_TRAJECTORIES",
    "CalibrationInputs",
    "CalibrationSource",
    "StepAlignment",
    "StepChoice",
    "Trajectory",
    "align_steps",
    "build_ddim",
    "build_scheduler",
    "choose_steps",
    "collect_trajectory",
    "counts_of_steps",
    "features_of_run",
    "noise_levels",
    "normal_biased_weights",
    "output_influence",
    "random_trajectory",
    "read_inputs",
    "read_source",
    "recorded_inputs",
    "rows_in_turn",
    "sampling_timesteps",
]
