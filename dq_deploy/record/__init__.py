"""The record: a quantized denoiser as values, and the two file forms it is stored in."""

from __future__ import annotations

from dq_deploy.record.values import (
    SCHEMA_VERSION,
    Layer,
    Part,
    Record,
    edges_from_timesteps,
)

__all__ = ["SCHEMA_VERSION", "Layer", "Part", "Record", "edges_from_timesteps"]
