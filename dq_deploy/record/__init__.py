"""The record: a quantized denoiser as values, and the two file forms it is stored in."""

from __future__ import annotations

from dq_deploy.record.extensions import BATCH, OUTPUT, AttentionQuantizers, Branch, Call, CallInput, CodeTable, Fold
from dq_deploy.record.files import check_record_path, load_record, save_record
from dq_deploy.record.files.arrays import content_sha256
from dq_deploy.record.running import check_can_run, check_is_record
from dq_deploy.record.values import SCHEMA_VERSION, Layer, Part, Record, edges_from_timesteps
from dq_deploy.record.weight_only import WeightOnlyLayer

__all__ = [
    "BATCH",
    "OUTPUT",
    "SCHEMA_VERSION",
    "AttentionQuantizers",
    "Branch",
    "Call",
    "CallInput",
    "CodeTable",
    "Fold",
    "Layer",
    "Part",
    "Record",
    "WeightOnlyLayer",
    "check_can_run",
    "check_is_record",
    "check_record_path",
    "content_sha256",
    "edges_from_timesteps",
    "load_record",
    "save_record",
]
