"""A real server under load: its times, for the simulation to replay, and its latencies, to hold the simulation against.

    python -m benchmarks.serving.simulation.measure --model digits --record demo-out/model.pt

For each load a row with its percentiles, their intervals and the times of the engine and of the turn is appended to
benchmarks/results/serving_simulation.jsonl; then the simulation of each load is held against it. Five minutes, on cores
that nothing else uses: 20 s of the load test, and two minutes each of Poisson arrivals, which a p99 needs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.load import Client
from benchmarks.serving.run import FOLDERS, ROOT, bodies_of, started
from benchmarks.serving.simulation.check import checked
from benchmarks.serving.simulation.times import Times, arrivals, choices
from dq_deploy.bench.environment import describe_environment

Load = tuple[dict[str, Any], list[float]]
"""A row of a load, and the latencies of its requests."""

RESULTS = ROOT / "benchmarks" / "results" / "serving_simulation.jsonl"


def closed(port: int, bodies: list[dict[str, Any]], clients: int, seconds: float, seed: int) -> Load:
    """So many clients, each of which asks again as soon as it has its answer; those of the first fifth are left out."""
    found: list[tuple[float, float]] = []
    began = time.monotonic()

    def ask(own: int) -> None:
        client = Client(port)
        for number in choices(len(bodies), seed, own):
            at = time.monotonic()
            if at - began >= seconds:
                break
            answered = client.pictures(bodies[number])
            assert answered is not None
            found.append((at - began, time.monotonic() - at))
        client.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    row, latencies = summary(found, seconds)
    return {"load": "closed", "clients": clients, "seconds": seconds, "seed": seed, **row}, latencies


def opened(port: int, bodies: list[dict[str, Any]], rate: float, seconds: float, seed: int) -> Load:
    """Requests of a Poisson process, whatever the server does; a latency counts from when the request was due."""
    found: list[tuple[float, float]] = []
    threads: list[threading.Thread] = []
    began = time.monotonic()

    def ask(due: float, body: dict[str, Any]) -> None:
        client = Client(port)
        assert client.pictures(body) is not None
        found.append((due, time.monotonic() - began - due))
        client.close()

    for at, number in arrivals(rate, seconds, len(bodies), seed):
        time.sleep(max(0.0, began + at - time.monotonic()))
        threads.append(threading.Thread(target=ask, args=(at, bodies[number])))
        threads[-1].start()
    for thread in threads:
        thread.join()
    row, latencies = summary(found, seconds)
    return {"load": "poisson", "rate": rate, "seconds": seconds, "seed": seed, **row}, latencies


RESAMPLES, PIECES = 2000, 25


def summary(found: list[tuple[float, float]], seconds: float) -> tuple[dict[str, Any], list[float]]:
    """Percentiles of (start, latency) of each request, without the first fifth of the time; and those latencies."""
    taken = [latency for start, latency in sorted(found) if start >= seconds / 5]
    row: dict[str, Any] = {"requests": len(taken), "mean_s": round(float(np.mean(taken)), 4)}
    for name, share in (("p50_s", 50), ("p99_s", 99)):
        row[name] = round(float(np.percentile(taken, share)), 4)
        row[f"{name}_interval"] = interval(taken, share)
    return row, taken


def interval(latencies: list[float], share: float) -> list[float]:
    """Of a percentile, 95 %, by bootstrap over requests.

    Requests that come one behind the other are drawn together (Kuensch 1989), for they meet the same queue and the
    same pause of the machine.

    Args:
        latencies: in the order in which requests came.
        share: of them, in percent.
    """
    values, draw = np.array(latencies), np.random.default_rng(0)
    length = max(1, len(values) // PIECES)
    starts = draw.integers(0, len(values) - length + 1, (RESAMPLES, -(-len(values) // length)))
    drawn = values[(starts[..., None] + np.arange(length)).reshape(RESAMPLES, -1)[:, : len(values)]]
    return [round(float(one), 4) for one in np.quantile(np.percentile(drawn, share, axis=1), [0.025, 0.975])]


def main() -> None:
    """Measure and append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(FOLDERS), required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--instances", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the load test")
    parser.add_argument("--open-seconds", type=float, default=120.0, help="of each load of Poisson arrivals")
    parser.add_argument("--keep-trace", type=Path, help="where what the server wrote down is left")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.5, 0.8], help="of the measured rate, open loads")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    bodies = bodies_of(given.model)
    whole = [] if given.model == "digits" else ["--model", str(FOLDERS[given.model])]
    environment = describe_environment(threads=1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        command = ["benchmarks.serving.simulation.traced_server", str(file), "--engine", str(given.record), *whole]
        command += ["--threads", "1", "--instances", str(given.instances)]
        launched = time.monotonic()
        with started(command, Path(folder) / "log") as (port, _):
            start_s = time.monotonic() - launched
            for body in bodies[:12]:
                Client(port).pictures(body)
            closed(port, bodies, given.clients, 3.0, seed=1)
            marks, seen = [time.monotonic()], [closed(port, bodies, given.clients, given.seconds, seed=2)]
            marks.append(time.monotonic())
            for share in given.shares:
                rate = share * seen[0][0]["requests"] / (0.8 * given.seconds)
                seen.append(opened(port, bodies, rate, given.open_seconds, seed=3))
                marks.append(time.monotonic())
        trace = json.loads(file.read_text())
    if given.keep_trace is not None:
        given.keep_trace.write_text(json.dumps({"trace": trace, "marks": marks, "seen": seen}))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    facts = {
        "model": given.model,
        "instances": given.instances,
        "max_batch": 8,
        "start_s": round(start_s, 1),
        "commit": commit.strip(),
        **{key: environment[key] for key in ("date", "cpu", "cpu_flags", "usable_cores", "load_average_1min")},
    }
    with given.results.open("a", encoding="utf-8") as results:
        for (one, latencies), begin, end in zip(seen, marks, marks[1:], strict=False):
            times = Times.of_trace(trace, begin, end, begin + one["seconds"] / 5, latencies)
            row = {"kind": "measured", **facts, **one, "lasted_s": round(end - begin, 2)}
            found = checked({**row, "times": times})
            results.write(json.dumps({**row, "times": times.json()}) + "\n" + json.dumps(found) + "\n")
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
