"""How fast an engine runs and how much memory it takes, next to the float graph on the same engine."""

from __future__ import annotations

from dq_deploy.bench.harness import BenchReport, Latency, Round, benchmark
from dq_deploy.bench.options import BenchOptions

__all__ = ["BenchOptions", "BenchReport", "Latency", "Round", "benchmark"]
