"""A server killed at random moments under load, and started again: every answer behind that is the same bytes.

python -m benchmarks.serving.kills --record demo-out/model.pt --times 30
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from benchmarks.serving.load import Client, answers_alone
from benchmarks.serving.run import bodies_of


def started(record: Path) -> tuple[subprocess.Popen[str], int]:
    """A server and its port."""
    command = [sys.executable, "-m", "dq_deploy.cli.serve", "--engine", str(record), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    return process, int(line.rpartition(":")[2])


def quietly(port: int, seed: int) -> None:
    """Ask until the server is gone."""
    client, bodies = Client(port), bodies_of("digits")
    with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
        for body in random.Random(seed).choices(bodies, k=10_000):
            client.pictures(body)


def hash_of(path: Path) -> str:
    """Of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Kill, start, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--times", type=int, default=30)
    given = parser.parse_args()
    bodies, wanted, draw = bodies_of("digits")[:8], None, random.Random(0)
    before = hash_of(given.record)
    for number in range(given.times + 1):
        process, port = started(given.record)
        answers = answers_alone(port, bodies)
        wanted = wanted or answers
        if answers != wanted or hash_of(given.record) != before:
            raise SystemExit(f"behind kill {number} an answer or the record differs")
        threads = [threading.Thread(target=quietly, args=(port, seed)) for seed in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(draw.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for thread in threads:
            thread.join()
    print(f"{given.times} kills: the record is as it was, and {len(bodies)} answers were the same bytes behind each")


if __name__ == "__main__":
    main()
