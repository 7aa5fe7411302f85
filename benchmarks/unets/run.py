"""Whole UNets: the native engine beside ONNX Runtime, OpenVINO and torch, each in a process of its own, taking turns.

    python -m benchmarks.unets.run --model cifar --isa avx2 --threads 2     # W4A8 and W8A8
    python -m benchmarks.unets.run --model sd15 --engine "onnxruntime float32"

CIFAR-10 DDPM shape (35.7 M parameters, batch 1), the demo model, and by request Stable Diffusion 1.5 (batch 2, 64x64;
it takes 16 GiB with all engines) and DiT-XL/2 (batch 2, 32x32). Random weights where there is no model: time does not
depend on their values. First the gate: the accumulators of every integer layer against an exact float64 product of the
codes it saw; a red engine prints RED and no speed, and the exit code is 3. For avx2 and avx_vnni the libraries run as
on a CPU without the rest (machine/avx2.py). ONNX Runtime and OpenVINO in integers are the exact graphs of dq-export.
Memory is the highest resident size of each process, interpreter included. Records and graphs are kept in the folder
--work; a row of each table is appended to benchmarks/results/unets.jsonl, and what is there for the same commit is not
measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import quiet
from benchmarks.machine.avx2 import MachineError, prepare
from benchmarks.machine.commit import commit
from benchmarks.unets.denoisers import denoiser_of
from benchmarks.unets.torch_worker import TorchWorker
from dq_deploy.errors import DqError

ROOT = Path(__file__).resolve().parents[1]
RED = 3
BATCHES = {"cifar": 1, "demo": 1, "sd15": 2, "dit-xl": 2}
NATIVE = "native"
ENGINES = ("onnxruntime float32", "onnxruntime int8", "openvino float32", "openvino int8", "torch float32")
CLAIMS = (("onnxruntime float32", 2.0), ("openvino int8", 1.3))
"""What the native engine has to be faster than, and how often, for the CIFAR shape in W4A8 on AVX2 and 2 threads."""
MEMORY_CLAIM = ("onnxruntime float32", 1 / 3)


@dataclass(frozen=True)
class Series:
    """What one engine's process gave.

    Attributes:
        rounds: latencies in ms of each turn.
        peak_mib: highest resident memory.
        load_ms: from nothing to ready.
    """

    rounds: tuple[tuple[float, ...], ...]
    peak_mib: float
    load_ms: float

    def to_json(self) -> dict[str, Any]:
        """Median, least and 90th percentile over all runs, the median of each round, and the rest."""
        every = [ms for turn in self.rounds for ms in turn]
        p50, p90 = (float(value) for value in np.percentile(every, [50, 90]))
        rounds = [float(np.median(turn)) for turn in self.rounds]
        ms = {"p50": p50, "min": min(every), "p90": p90, "rounds": rounds}
        return {"ms": ms, "peak_mib": self.peak_mib, "load_ms": self.load_ms}


def record_path(model: str, bits: int, work: Path) -> Path:
    """The record in the work folder; made where it is not there."""
    import dq_deploy
    from dq_deploy.calibration import CalibrationSource

    path = work / f"{model}-w{bits}a8.pt"
    if not path.is_file():
        large: dict[str, Any] = {"steps": 20, "samples": 4}
        if model in ("sd15", "dit-xl"):
            large = {"steps": 4, "samples": 1, "memory_gib": 4.0, "calibration": CalibrationSource(kind="random")}
        record = dq_deploy.quantize(denoiser_of(model), method="minmax", weight_bits=bits, activation_bits=8, **large)
        dq_deploy.save_record(record, path)
    return path


def graph_path(record: Path, engine: str, model: str, work: Path) -> Path:
    """The ONNX file that a library engine runs; exported where it is not there."""
    import dq_deploy
    from dq_deploy.graph.onnx_file import read_manifest
    from dq_deploy.targets import float_graph

    library, _, kind = engine.partition(" ")
    if kind == "int8":
        path = work / f"{record.stem}-{library}.onnx"
        if not path.is_file():
            dq_deploy.export(dq_deploy.load_record(record), path, target=library)
        return path
    path = work / f"{model}-float32.onnx"
    if not path.is_file():
        manifest = read_manifest(graph_path(record, "onnxruntime int8", model, work))
        float_graph(manifest, path, record=dq_deploy.load_record(record))
    return path


def red_layers(record: Path, isa: str, threads: int, batch: int) -> list[str]:
    """Integer layers whose accumulators are not the exact product of their codes, with the number that differ."""
    import torch

    from dq_deploy.bench.clocks import feeds_for
    from dq_deploy.open_engine import open_engine

    torch.set_num_threads(threads)
    found = []
    with open_engine(record, isa=isa, threads=threads) as runner:
        _, layers = runner.observe(feeds_for(runner.inputs, batch, runner.manifest))
        for name, trace in layers.items():
            layer = runner.record.layers[name]
            for part, codes, got in zip(layer.parts, trace.codes, trace.accumulators, strict=True):
                wanted = exact_product(layer, part.q_weight(0), codes)
                wrong = int((wanted.reshape(got.shape) != got).sum())
                if wrong:
                    found.append(f"{name}: {wrong} of {got.size} accumulators")
    return found


def exact_product(layer: Any, weights: Any, codes: Any) -> Any:
    """The layer's product of centred codes and integer weights, int64 by float64."""
    import torch
    from torch.nn import functional as F

    x, w = (torch.from_numpy(np.ascontiguousarray(value, np.float64)) for value in (codes, weights))
    if layer.kind == "linear":
        return (x @ w.T).numpy().astype(np.int64)
    top, left, bottom, right = layer.padding
    padded = F.pad(x, (left, right, top, bottom))
    return F.conv2d(padded, w, stride=layer.stride, dilation=layer.dilation).numpy().astype(np.int64)


@contextlib.contextmanager
def environment_of(changes: Mapping[str, str]) -> Iterator[None]:
    """Variables for the processes that are started in the block."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def processes(files: Mapping[str, Path], isa: str, arguments: argparse.Namespace, model: str, threads: int) -> Any:
    """A process of each engine, by name, the libraries' on a machine with no more than the instruction set."""
    from dq_deploy.bench.worker import Worker, WorkerSettings

    held = {"avx2": False, "avx_vnni": True}
    changes = prepare(arguments.machine, avx_vnni=held[isa]) if isa in held else {}
    with contextlib.ExitStack() as stack:
        running: dict[str, Any] = {}
        for name, path in files.items():
            if name == NATIVE:
                settings = WorkerSettings(path=str(path), engine=NATIVE, threads=threads, isa=isa)
                running[name] = stack.enter_context(Worker(settings))
                continue
            with environment_of(changes):
                if name.startswith("torch"):
                    running[name] = stack.enter_context(TorchWorker(model, threads))
                else:
                    settings = WorkerSettings(path=str(path), engine=name.partition(" ")[0], threads=threads)
                    running[name] = stack.enter_context(Worker(settings))
        yield running


def take_turns(
    running: Mapping[str, Any], batch: int, rounds: int, seconds: float
) -> tuple[dict[str, Series], list[float]]:
    """Every round is a turn of each engine; two runs of a turn are not counted, at least three are.

    Returns:
        Series by name, and how busy others kept the machine before each round.
    """
    turns: dict[str, list[tuple[float, ...]]] = {name: [] for name in running}
    peaks: dict[str, float] = {}
    busy = []
    for _ in range(rounds):
        busy.append(quiet.others_busy())
        for name, worker in running.items():
            time.sleep(0.05)  # the threads of the one before end their spinning
            answer = worker.time(batch=batch, warmup=2, runs=3, seconds=seconds, clock="host")
            turns[name].append(answer.latency_ms)
            peaks[name] = answer.peak_mib
    series = {
        name: Series(rounds=tuple(turns[name]), peak_mib=peaks[name], load_ms=worker.load_ms)
        for name, worker in running.items()
    }
    return series, busy


def ratios(series: Mapping[str, Series]) -> dict[str, dict[str, float]]:
    """The native engine against each other one.

    Returns:
        By engine `speedup`, the median over rounds of its median over ours; `least` and `most` of the rounds; and
        `memory`, our peak over its.
    """
    own = series[NATIVE].to_json()
    found = {}
    for name, other in series.items():
        if name != NATIVE:
            theirs = other.to_json()
            each = [b / a for a, b in zip(own["ms"]["rounds"], theirs["ms"]["rounds"], strict=True)]
            memory = own["peak_mib"] / theirs["peak_mib"]
            found[name] = {"speedup": float(np.median(each)), "least": min(each), "most": max(each), "memory": memory}
    return found


def verdicts(key: Mapping[str, Any], compared: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The claims about this row, in words; none for other rows than that of CIFAR, W4A8, AVX2, 2 threads."""
    if (key["model"], key["bits"], key["isa"], key["threads"]) != ("cifar", "W4A8", "avx2", 2):
        return []
    lines = []
    for name, least in CLAIMS:
        if name in compared:
            got = compared[name]["speedup"]
            lines.append(f"{'met' if got >= least else 'NOT MET'}: {got:.2f}x {name}, claimed {least:.1f}x")
    name, most = MEMORY_CLAIM
    if name in compared:
        got = compared[name]["memory"]
        lines.append(
            f"{'met' if got < most else 'NOT MET'}: {got:.2f} of the memory of {name}, claimed under {most:.2f}"
        )
    return lines


def table(series: Mapping[str, Series], compared: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lines of text, one an engine."""
    lines = [f"{'engine':24}{'p50 ms':>9}{'min ms':>9}{'peak MiB':>10}{'load ms':>9}{'native is':>11}{'of rounds':>16}"]
    for name, own in series.items():
        values = own.to_json()
        text = f"{name:24}{values['ms']['p50']:9.1f}{values['ms']['min']:9.1f}"
        text += f"{values['peak_mib']:10.0f}{values['load_ms']:9.0f}"
        if name in compared:
            other = compared[name]
            span = f"{other['least']:.2f} to {other['most']:.2f}"
            text += f"{other['speedup']:10.2f}x{span:>16}"
        lines.append(text)
    return lines


def measure(model: str, bits: int, isa: str, threads: int, arguments: argparse.Namespace) -> int:
    """One table; the exit code."""
    from dq_deploy.bench.environment import describe_environment

    key = {"model": model, "bits": f"W{bits}A8", "isa": isa, "threads": threads, "batch": BATCHES[model]}
    if not arguments.again and json.dumps(key, sort_keys=True) in done_rows(arguments.results):
        return 0
    record = record_path(model, bits, arguments.work)
    print(f"\n{model} W{bits}A8, batch {BATCHES[model]}, {isa}, threads {threads}", flush=True)
    row: dict[str, Any] = {"key": key, "commit": commit(), "environment": describe_environment(threads=threads)}
    red = red_layers(record, isa, threads, BATCHES[model])
    if red:
        print("RED: " + "; ".join(red), flush=True)
        row["red"] = red
    else:
        files = {NATIVE: record}
        for engine in arguments.engine:
            files[engine] = record if engine.startswith("torch") else graph_path(record, engine, model, arguments.work)
        with processes(files, isa, arguments, model, threads) as running:
            series, busy = take_turns(running, BATCHES[model], arguments.rounds, arguments.seconds)
        compared = ratios(series)
        claims = verdicts(key, compared)
        print("\n".join([*table(series, compared), *claims, *filter(None, [quiet.remark(busy)])]), flush=True)
        row |= {"engines": {name: own.to_json() for name, own in series.items()}, "native_is": compared}
        row |= {"claims": claims, "rounds": arguments.rounds, "others_busy": float(np.mean(busy))}
    with arguments.results.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, sort_keys=True) + "\n")
    return RED if red else 0


def done_rows(results: Path) -> set[str]:
    """Keys of the green rows that this commit has in the results."""
    if not results.is_file():
        return set()
    rows: Sequence[Any] = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    name = commit()
    return {json.dumps(row["key"], sort_keys=True) for row in rows if row["commit"] == name and "red" not in row}


def parsed(words: list[str] | None) -> argparse.Namespace:
    """The options."""
    from dq_kernels.cpu.library import known_isas

    temporary = Path(tempfile.gettempdir())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", action="append", choices=tuple(BATCHES), help="repeatable; demo and cifar by default"
    )
    parser.add_argument(
        "--weights", type=int, action="append", choices=(4, 8), help="bits, repeatable; both by default"
    )
    parser.add_argument("--isa", action="append", choices=known_isas(), help="repeatable; avx2 and the best by default")
    parser.add_argument("--threads", type=int, action="append", help="repeatable; 1 and 2 by default")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="beside the native one; all by default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn")
    parser.add_argument("--quick", action="store_true", help="three short rounds, for a look")
    parser.add_argument("--again", action="store_true", help="measure what this commit has in the results already")
    parser.add_argument("--work", type=Path, default=temporary / "dq-unets", help="folder of records and graphs")
    parser.add_argument("--machine", type=Path, default=temporary / "dq-avx2-machine", help="folder of patched copies")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "unets.jsonl")
    arguments = parser.parse_args(words)
    arguments.model = arguments.model or ["demo", "cifar"]
    arguments.isa = arguments.isa or list(dict.fromkeys(["avx2", known_isas()[-1]]))
    arguments.weights, arguments.threads = arguments.weights or [4, 8], arguments.threads or [1, 2]
    arguments.engine = arguments.engine or list(ENGINES)
    if arguments.quick:
        arguments.rounds, arguments.seconds = 3, 0.1
    return arguments


def main(words: list[str] | None = None) -> int:
    """Measure what the options ask for; 3 where an engine is red."""
    arguments = parsed(words)
    arguments.work.mkdir(parents=True, exist_ok=True)
    code = 0
    for model, bits, isa, threads in itertools.product(
        arguments.model, arguments.weights, arguments.isa, arguments.threads
    ):
        try:
            code = max(code, measure(model, bits, isa, threads, arguments))
        except (DqError, MachineError) as error:
            print(f"error: {error}", file=sys.stderr)
            return getattr(error, "exit_code", 2)
    return code


if __name__ == "__main__":
    sys.exit(main())
