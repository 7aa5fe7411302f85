"""How much sooner two processes on a core each are done than one on one core.

    python -m benchmarks.sharing.speed                          # the digits, DilateQuant; some minutes, two free cores
    python -m benchmarks.sharing.speed --method gptq --rounds 5

One and two processes take turns, so that what else the machine does meets both. A round gives a quotient of wall
times. On a machine that does other things, the quotient of CPU times says more: the CPU seconds of the one process
over those of the busier of the two, which leaves out waiting. Rows in benchmarks/results/sharing.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.machine.commit import commit
from benchmarks.sharing.processes import torchrun

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "sharing.jsonl"


def measured(count: int, core: int, given: argparse.Namespace) -> dict[str, Any]:
    """One run.

    Raises:
        SystemExit: it failed; says what it printed.
    """
    options = ("--method", given.method, "--iterations", given.iterations, "--samples", given.samples)
    started = torchrun(count, "benchmarks.sharing.timed", given.model, "--core", core, "--steps", given.steps, *options)
    said, _ = started.communicate()
    rows = [json.loads(line) for line in said.splitlines() if line.startswith('{"processes"')]
    if started.returncode or not rows:
        raise SystemExit(said)
    row: dict[str, Any] = rows[0]
    return row


def main() -> None:
    """Measure and print each round, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "mnist-ddpm-32")
    parser.add_argument("--method", default="dilatequant")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    settings = {name: getattr(given, name) for name in ("method", "iterations", "samples", "steps")}
    gains: dict[str, list[float]] = {name: [] for name in ("before", "blocks", "before_cpu", "blocks_cpu")}
    for number in range(given.rounds):
        one, two = measured(1, number % 2, given), measured(2, 0, given)
        for part in ("before", "blocks"):
            gains[part].append(one[f"{part}_s"] / two[f"{part}_s"])
            gains[f"{part}_cpu"].append(one[f"{part}_cpu_s"][0] / max(two[f"{part}_cpu_s"]))
        row = {"commit": commit(), "model": given.model.name, **settings, "one": one, "two": two}
        with RESULTS.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        print({name: round(values[-1], 2) for name, values in gains.items()}, flush=True)
    print("median", {name: round(statistics.median(values), 2) for name, values in gains.items()})


if __name__ == "__main__":
    main()
