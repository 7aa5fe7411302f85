"""Which inputs a method sees, and how they are collected."""

from __future__ import annotations

from dq_deploy.calibration.trajectory import (
    Trajectory,
    build_ddim,
    collect_trajectory,
    sampling_timesteps,
)

__all__ = ["Trajectory", "build_ddim", "collect_trajectory", "sampling_timesteps"]
