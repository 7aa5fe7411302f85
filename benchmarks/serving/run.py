"""The image server under load, beside the same engine and the float pipeline behind a lock.

    python -m benchmarks.serving.run --model digits --record demo-out/model.pt --requests 10000
    python -m benchmarks.serving.run --model text --record demo-out/prompt.pt --requests 1000

Each server is a process of its own, started afresh; the clients are threads of this one. Every answer of `dq-serve` is
compared byte for byte with the answer to the same request alone. The others get fewer requests (`--peer-requests`).
Results are appended to benchmarks/results/serving.jsonl.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.serving.load import answers_alone, load
from dq_deploy.bench.environment import describe_environment

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "serving.jsonl"
FOLDERS = {"digits": ROOT / "examples" / "mnist-ddpm-32", "text": ROOT / "examples" / "emoji-text-to-image"}
PROMPTS = ("red heart", "dog face", "pizza", "green apple", "grinning face", "blue car", "full moon", "cat")


def bodies_of(model: str) -> list[dict[str, Any]]:
    """Forty requests of mixed steps, sizes and labels or prompts."""
    found = []
    for i in range(40):
        digits = model == "digits"
        found.append(
            {
                "prompt": str(i % 10) if digits else PROMPTS[i % len(PROMPTS)],
                "seed": i,
                "steps": (4, 6, 10, 20)[i % 4],
                "size": ("32x32", "32x32", "40x40")[i % 3] if digits else "32x32",
                "n": 1 + (i % 10 == 0),
            }
        )
    return found


def servers(given: argparse.Namespace) -> dict[str, list[str]]:
    """Command of each server without its port."""
    folder = str(FOLDERS[given.model])
    threads = ["--threads", str(given.threads)]
    both = ["--threads", str(given.threads * given.instances)]
    whole = [] if given.model == "digits" else ["--model", folder]
    ours = ["dq_deploy.cli.serve", "--engine", str(given.record), *whole, *threads]
    plain = ["benchmarks.serving.plain_server", "--model", folder, *both]
    return {
        "dq-serve": [*ours, "--max-batch", str(given.max_batch), "--instances", str(given.instances)],
        "dq-serve, batch 1": [*ours, "--max-batch", "1", "--instances", str(given.instances)],
        "the engine behind a lock": [*plain, "--engine", str(given.record)],
        "diffusers behind a lock": plain,
    }


@contextmanager
def started(command: Sequence[str], log: Path) -> Iterator[tuple[int, int]]:
    """A server as (port, pid), ready to answer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--port", str(port)], stdout=file, stderr=file, cwd=ROOT
        )
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"a server did not start; {log} says why") from None
                time.sleep(0.2)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(60)


def engine_share(port: int) -> Mapping[str, float]:
    """How busy the engine was, from the server's own metrics."""
    import urllib.request

    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    values = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name in ("dq_engine_call_seconds_sum", "dq_engine_call_seconds_count", "dq_engine_call_rows_sum"):
            values[name.removeprefix("dq_engine_call_")] = float(value)
    return values


def measured(name: str, command: Sequence[str], given: argparse.Namespace) -> dict[str, Any]:
    """One server under load."""
    bodies, ours = bodies_of(given.model), name.startswith("dq-serve")
    requests = given.requests if name == "dq-serve" else given.peer_requests
    with started(command, given.log) as (port, pid):
        alone = answers_alone(port, bodies)
        before = engine_share(port) if ours else {}
        outcome = load(port, bodies, alone, clients=given.clients, requests=requests, pid=pid)
        after = engine_share(port) if ours else {}
    result = {"server": name, **outcome.summary()}
    if ours:
        spent = {key: after[key] - before[key] for key in after}
        result["engine_busy_share"] = round(spent["seconds_sum"] / outcome.seconds, 3)
        result["rows_per_call"] = round(spent["rows_sum"] / spent["seconds_count"], 2)
    return result


def main() -> None:
    """Measure each server and print its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(FOLDERS), required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--peer-requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="of each engine; a peer has as many as all together")
    parser.add_argument("--instances", type=int, default=2)
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--server", action="append", help="one of those; repeatable, all by default")
    parser.add_argument("--log", type=Path, default=Path("serving.log"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    for name, command in servers(given).items():
        if given.server and name not in given.server:
            continue
        environment = describe_environment(threads=given.threads)
        row = measured(name, command, given)
        facts = {
            "model": given.model,
            "clients": given.clients,
            "threads": given.threads,
            "max_batch": given.max_batch,
            "instances": given.instances,
            "commit": commit.strip(),
            **{key: environment[key] for key in ("date", "cpu", "cpu_flags", "usable_cores", "load_average_1min")},
        }
        with given.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**facts, **row}) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
