"""The simulation of one replica beside the measured server: the same loads, percentiles side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import simpy

from benchmarks.serving.run import bodies_of
from benchmarks.serving.simulation.fleet import Fleet, Kind
from benchmarks.serving.simulation.times import Times, arrivals, choices
from dq_deploy.serve import Limits

SEEDS = 3
"""Runs of the simulation, whose percentiles are averaged: the same requests, with other draws of the times."""


def kinds_of(model: str) -> list[Kind]:
    """The load test's requests as the simulation takes them."""
    digits = model == "digits"
    shapes = {"32x32": "(1, 32, 32)", "40x40": "(1, 40, 40)"} if digits else {"32x32": "(3, 32, 32)"}
    return [(shapes[one["size"]], one["steps"], 1 if digits else 2, one["n"]) for one in bodies_of(model)]


def loads_of(results: Path) -> list[dict[str, Any]]:
    """Each load of a results file that a server was measured under, with the times that were seen meanwhile."""
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    return [{**row, "times": Times.of_json(row["times"])} for row in rows if row["kind"] == "measured"]


def simulated(load: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """One replica under the load that was measured."""
    env = simpy.Environment()
    limits = Limits(max_batch=load["max_batch"], instances=load["instances"])
    seconds, kinds = load["seconds"], kinds_of(load["model"])
    fleet = Fleet(env=env, times=load["times"], limits=limits, kinds=kinds, seed=seed, replay_s=load["lasted_s"])
    fleet.add()
    if load["load"] == "closed":
        for client in range(load["clients"]):
            env.process(fleet.closed(choices(len(kinds), load["seed"], client), seconds))
    else:
        env.process(fleet.replayed(arrivals(load["rate"], seconds, len(kinds), load["seed"])))
    env.run(until=seconds + limits.time_limit_s)
    return fleet.summary(seconds / 5, seconds)


def checked(load: Mapping[str, Any]) -> dict[str, Any]:
    """A load's percentiles, measured and simulated, and how far they are apart."""
    runs = [simulated(load, seed) for seed in range(SEEDS)]
    row = {"kind": "check", **{k: load[k] for k in ("model", "instances", "load", "clients", "rate") if k in load}}
    for name in ("p50_s", "p99_s"):
        ours = sum(one[name] for one in runs) / SEEDS
        row |= {f"{name}_measured": load[name], f"{name}_simulated": round(ours, 4)}
        row[f"{name}_apart"] = round(ours / load[name] - 1, 3)
    return row
