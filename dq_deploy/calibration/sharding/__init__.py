"""One model quantized by several processes: what is whose, what they tell each other, in which order it is added."""

from __future__ import annotations

from dq_deploy.calibration.sharding.share import Share
from dq_deploy.calibration.sharding.workers import MOST_PROCESSES, SHARDS, Tally, Workers

__all__ = ["MOST_PROCESSES", "SHARDS", "Share", "Tally", "Workers"]
