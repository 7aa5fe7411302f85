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

NEAR = 0.15
"""Of a measured percentile: a simulated one that is no farther off is called near."""


def kinds_of(model: str) -> list[Kind]:
    """The load test's requests as the simulation takes them."""
    digits = model == "digits"
    shapes = {"32x32": "(1, 32, 32)", "40x40": "(1, 40, 40)"} if digits else {"32x32": "(3, 32, 32)"}
    return [(shapes[one["size"]], one["steps"], 1 if digits else 2, one["n"]) for one in bodies_of(model)]


def loads_of(results: Path) -> list[dict[str, Any]]:
    """Each load of a results file that a server was measured under, with the times that were seen meanwhile.

    Those without speeds, of an earlier form, can be drawn from and not replayed.
    """
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    return [{**row, "times": Times.of_json(row["times"])} for row in rows if row["kind"] == "measured"]


def simulated(load: Mapping[str, Any]) -> dict[str, Any]:
    """One replica under the load that was measured; nothing in it is drawn."""
    env = simpy.Environment()
    limits = Limits(max_batch=load["max_batch"], instances=load["instances"])
    seconds, kinds = load["seconds"], kinds_of(load["model"])
    fleet = Fleet(env=env, times=load["times"], limits=limits, kinds=kinds, replay=True)
    fleet.add()
    if load["load"] == "closed":
        for client in range(load["clients"]):
            env.process(fleet.closed(choices(len(kinds), load["seed"], client), seconds))
    else:
        env.process(fleet.replayed(arrivals(load["rate"], seconds, len(kinds), load["seed"])))
    env.run(until=seconds + limits.time_limit_s)
    return fleet.summary(seconds / 5, seconds)


def checked(load: Mapping[str, Any]) -> dict[str, Any]:
    """A load's percentiles, measured and simulated, how far they are apart, and whether the interval holds both."""
    found = simulated(load)
    facts = ("model", "instances", "load", "clients", "rate", "requests")
    row = {"kind": "check", **{k: load[k] for k in facts if k in load}}
    for name in ("p50_s", "p99_s"):
        low, high = load[f"{name}_interval"]
        row |= {f"{name}_measured": load[name], f"{name}_interval": [low, high], f"{name}_simulated": found[name]}
        row[f"{name}_apart"] = round(found[name] / load[name] - 1, 3)
        near = abs(row[f"{name}_apart"]) <= NEAR
        row[f"{name}_is"] = "near" if near else "in the interval" if low <= found[name] <= high else "outside"
    return row
