"""How long an engine takes to open in a fresh process, and the most memory that it has then.

    python -m benchmarks.unets.opening FILE ... [--times 5] [--no-hash-check]

Each file is read once before each time, so that it lies in the page cache; the median of the times is shown. A record
is traced when it is opened, in a process that loads torch; a program file (`dq-export --target native`) is not. A row a
file goes to benchmarks/results/opening.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.machine.commit import commit
from dq_deploy.bench.environment import describe_environment

RESULTS = Path(__file__).resolve().parents[1] / "results" / "opening.jsonl"
OPEN = """
import time
begin = time.perf_counter()
import resource, sys
from dq_deploy import open_engine
open_engine(sys.argv[1], device="cpu", hash_check=sys.argv[2] == "1")
wall = time.perf_counter() - begin
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peaks = [int(status["VmHWM"].split()[0]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]
print(wall, time.process_time(), max(peaks) / 1024)
"""
"""Wall seconds from the first import, CPU seconds of the process, and MiB of it or of the process that traces."""
MIB = 1 << 20


def read(path: Path) -> None:
    """Bring a file into the page cache."""
    with path.open("rb") as stream:
        while stream.read(16 * MIB):
            pass


def opened(path: Path, *, hash_check: bool) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak MiB of a process that opens an engine and does nothing else."""
    read(path)
    command = [sys.executable, "-c", OPEN, str(path), str(int(hash_check))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall, cpu, peak = map(float, done.stdout.split())
    return wall, cpu, peak


def main() -> None:
    """Time every file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--hash-check", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    for path in given.files:
        seen = [opened(path, hash_check=given.hash_check) for _ in range(given.times)]
        wall, cpu, peak = (statistics.median(values) for values in zip(*seen, strict=True))
        row = {
            **{"file": path.name, "file_mib": path.stat().st_size / MIB, "hash_check": given.hash_check},
            **{"seconds": wall, "cpu_seconds": cpu, "peak_mib": peak, "all_seconds": [one[0] for one in seen]},
            **{"commit": commit(), "environment": describe_environment(threads=None)},
        }
        print(f"{path}: {wall:.3f} s, {cpu:.3f} s of CPU, {peak:.0f} MiB")
        with RESULTS.open("a") as stream:
            stream.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
