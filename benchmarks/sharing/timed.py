"""One of the processes that `benchmarks.sharing.speed` starts: quantizes, each process held to a core of its own.

Process 0 prints a line of JSON: seconds of wall time, and seconds of each process's CPU, of what comes before the
blocks (recording, ranges, their search) and of the training of blocks; and the bytes of gradients and sums sent.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from dq_deploy.calibration.sharding import SHARDS, Workers
from dq_deploy.methods import Progress, quantize
from dq_deploy.models import load_model


def main() -> None:
    """Quantize as one of the processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--method", default="dilatequant")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    given = parser.parse_args()
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[(given.core + rank) % len(cores)]})
    if count == 1:
        workers = Workers(shards=SHARDS)
    else:
        from dq_deploy.calibration.sharding.group import joined

        workers = joined()
    denoiser = load_model(given.model)
    marks: dict[str, tuple[float, float]] = {}

    def note(report: Progress) -> None:
        marks[report.stage] = (time.perf_counter(), time.process_time())

    options = {"iterations": given.iterations} if given.method in ("dilatequant", "eda-dm") else {}
    workers.everywhere(lambda: None)
    start = (time.perf_counter(), time.process_time())
    quantize(
        denoiser,
        method=given.method,
        samples=given.samples,
        steps=given.steps,
        memory_gib=4.0,
        progress=note,
        workers=workers,
        **options,
    )
    end = (time.perf_counter(), time.process_time())
    middle = marks["weights"]
    cpu = workers.everywhere(lambda: (middle[1] - start[1], end[1] - middle[1]))
    if workers.is_first:
        found = {
            "processes": count,
            "before_s": middle[0] - start[0],
            "blocks_s": end[0] - middle[0],
            "before_cpu_s": [one[0] for one in cpu],
            "blocks_cpu_s": [one[1] for one in cpu],
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
