"""Which inputs a method sees, and how they are collected."""

from __future__ import annotations

from dq_deploy.calibration.alignment import FEATURE_TRAJECTORIES, StepAlignment, align_steps, features_by_step
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
from dq_deploy.calibration.recording import AskedPipeline, RecordedInputs, SamplingRun, Visits, ready_pipeline
from dq_deploy.calibration.request import CalibrationRequest, PreparedCalibration, prepare_calibration
from dq_deploy.calibration.schedulers import noise_levels, sampling_timesteps
from dq_deploy.calibration.trajectory import (
    RandomInputs,
    labels_of,
    random_inputs,
    run_of_denoiser,
)

__all__ = [
    "CALIBRATIONS",
    "FEATURE_TRAJECTORIES",
    "AskedPipeline",
    "CalibrationInputs",
    "CalibrationRequest",
    "CalibrationSource",
    "PreparedCalibration",
    "RandomInputs",
    "RecordedInputs",
    "SamplingRun",
    "StepAlignment",
    "StepChoice",
    "Visits",
    "align_steps",
    "choose_steps",
    "counts_of_steps",
    "features_by_step",
    "labels_of",
    "noise_levels",
    "normal_biased_weights",
    "prepare_calibration",
    "random_inputs",
    "read_inputs",
    "read_source",
    "ready_pipeline",
    "recorded_inputs",
    "rows_in_turn",
    "run_of_denoiser",
    "sampling_timesteps",
]
