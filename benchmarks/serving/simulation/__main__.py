"""The simulation against the measured server, then fleets: steady load, a lost replica, a burst under the autoscaler.

    python -m benchmarks.serving.simulation --results benchmarks/results/serving_simulation.jsonl

The loads that `python -m benchmarks.serving.simulation.measure` appended there are replayed, and rows of checks and of
scenarios are written into the file in the place of earlier ones. `--chart` draws them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.serving.simulation.chart import write_chart
from benchmarks.serving.simulation.check import checked, kinds_of, loads_of
from benchmarks.serving.simulation.fleet import Fleet, Scaler
from benchmarks.serving.simulation.measure import RESULTS
from benchmarks.serving.simulation.scenarios import SD15_AMX_STEP_S, Model, burst, rows_of, sd15
from dq_deploy.serve import Limits

BURSTS = (
    ("waiting", 1.0, "large in pairs"),
    ("waiting + running", 1.0, "large in pairs"),
    ("waiting + running", 0.5, "large in pairs"),
    ("waiting + running", 0.5, "large, short queue"),
)
"""Gauge, its target as a share of the places of a replica, and the model."""


def models_of(loads: list[dict[str, Any]]) -> dict[str, Model]:
    """What the fleets serve: the digits, as the quietest machine had them under full load, and Stable Diffusion 1.5."""
    found = [load for load in loads if load["load"] == "closed" and load["model"] == "digits"]
    full = min(found, key=lambda load: float(load["load_average_1min"]))
    limits = Limits(max_batch=full["max_batch"], instances=full["instances"])
    small = Model(
        name="digits", times=full["times"], kinds=kinds_of("digits"), limits=limits, start_s=full["start_s"] + 15
    )
    return {
        "small": small,
        "large": sd15(8),
        "large in pairs": sd15(2),
        "large, short queue": sd15(2, queue=1),
        "large on AMX": sd15(8, step_s=SD15_AMX_STEP_S, cpu=" on AMX"),
    }


def bursts(models: dict[str, Model], least: int) -> list[tuple[dict[str, Any], Fleet]]:
    """The same burst under each way to scale."""
    found = []
    for gauge, share, name in BURSTS:
        model = models[name]
        target = share * model.limits.places
        scaler = Scaler(gauge=gauge, target=target, least=least, most=8 * least, start_s=model.start_s)
        row, fleet = burst(model, scaler, 0.5)
        found.append(({"kind": "burst", "model": model.name, **row}, fleet))
    return found


def _is_kept(row: dict[str, Any]) -> bool:
    """What was measured, and checks of an earlier form, whose loads cannot be replayed any more."""
    return bool(row["kind"] == "measured" or (row["kind"] == "check" and "p50_s_interval" not in row))


def main() -> None:
    """Check, simulate, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--chart", type=Path)
    given = parser.parse_args()
    lines = given.results.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _is_kept(json.loads(line))]
    loads = loads_of(given.results)
    rows: list[dict[str, Any]] = []

    def say(row: dict[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)

    for load in loads:
        if load["times"].speeds:
            say(checked(load))
    models = models_of(loads)
    for model in models.values():
        say(
            {
                "kind": "model",
                "model": model.name,
                "capacity": round(model.capacity(), 4),
                "gain": round(model.gain(), 3),
            }
        )
    for row in rows_of(models):
        say(row)
    drawn = bursts(models, 10)
    for row, _ in drawn:
        say(row)
    given.results.write_text("\n".join([*kept, *map(json.dumps, rows)]) + "\n", encoding="utf-8")
    if given.chart is not None:
        write_chart(given.chart, rows, drawn)


if __name__ == "__main__":
    main()
