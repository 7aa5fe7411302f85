"""What a pipeline gives its denoiser: the call derived from it, and inputs recorded while it draws."""

from __future__ import annotations

from dq_deploy.calibration.recording.asked_pipeline import (
    AskedPipeline,
    ReadyPipeline,
    cut_prompts,
    ready_pipeline,
)
from dq_deploy.calibration.recording.derived_call import derive_call
from dq_deploy.calibration.recording.prompts import read_prompts, shipped_prompts
from dq_deploy.calibration.recording.recorded_inputs import RecordedInputs
from dq_deploy.calibration.recording.sampling_run import SamplingRun, Visits
from dq_deploy.calibration.recording.second_calls import DerivedCall, call_of_pipeline

__all__ = [
    "AskedPipeline",
    "DerivedCall",
    "ReadyPipeline",
    "RecordedInputs",
    "SamplingRun",
    "Visits",
    "call_of_pipeline",
    "cut_prompts",
    "derive_call",
    "read_prompts",
    "ready_pipeline",
    "shipped_prompts",
]
