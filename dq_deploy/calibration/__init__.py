"""Which inputs a method sees, and how they are collected."""

from __future__ import annotations

from dq_deploy.calibration.recorded import (
    CALIBRATIONS,
    CalibrationInputs,
    CalibrationSource,
    read_inputs,
    read_source,
    recorded_inputs,
    rows_in_turn,
)
from dq_deploy.calibration.trajectory import (
    Trajectory,
    build_ddim,
    collect_trajectory,
    random_trajectory,
    sampling_timesteps,
)

__all__ = [
    "CALIBRATIONS",
    "CalibrationInputs",
    "CalibrationSource",
    "Trajectory",
    "build_ddim",
    "collect_trajectory",
    "random_trajectory",
    "read_inputs",
    "read_source",
    "recorded_inputs",
    "rows_in_turn",
    "sampling_timesteps",
]
