"""How fast an engine runs and how much memory it takes, next to the float graph on the same engine."""

from __future__ import annotations

from dq_deploy.bench.harness import BenchOptions, BenchReport, Latency, Round, benchmark

__all__ = ["BenchOptions", "BenchReport", "Latency", "Round", "benchmark"]
