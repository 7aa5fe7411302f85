"""Every integer kernel on every shape class of the CIFAR-10 DDPM, SD 1.5 and SDXL UNets, beside the libraries.

    python -m benchmarks.kernels.run --model cifar --isa avx512_vnni --threads 1 --quick
    python -m benchmarks.kernels.run                    # everything; hours, and it can be stopped and started again

First the gate: the kernel's results on the very shape, bit for bit against its reference (large products against an
exact float product of integers). A red kernel prints RED and no speed, and the exit code is 3. Then kernel and
baselines take turns in one process. The share is of this machine's measured peak: of the instruction that bounds an
exact product of these weights, or of a memory copy of as many bytes. For avx2 and avx_vnni the libraries run as on a
CPU without the rest (machine/avx2.py). A row each is appended to benchmarks/results/kernels.jsonl; a row that is there
for the same commit is not measured again, unless --again.

`--device cuda` measures the Triton kernels instead; see gpu.py. It was never run: the project has had no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kernels import baselines
from benchmarks.kernels import gate as kernel_gate
from benchmarks.kernels.rows import RED, compared, figures, key_of, line_of, variants
from benchmarks.kernels.shapes import MODELS, OPS, PRODUCTS, Shape
from benchmarks.machine import peaks, quiet
from benchmarks.machine.commit import commit

ROOT = Path(__file__).resolve().parents[1]
SHARED_CPU = {"avx2": False, "avx_vnni": True}
"""Instruction sets whose libraries run on an avx2_machine, and whether AVX-VNNI stays."""
HEADER = f"{'op and shape':58}{'bits':>5}{'min us':>11}{'median':>11}{'rate':>14}{'of peak':>9}"


def take_turns(runs: Mapping[str, Callable[[], Any]], rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Microseconds of each by name, min and median; every round is a turn of each, after a pause and a warm run."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(0.005)  # the threads of the one before end their spinning
            run()
            began, count = time.perf_counter(), 0
            while count < 2 or time.perf_counter() - began < seconds:
                start = time.perf_counter()
                run()
                spent[name].append((time.perf_counter() - start) * 1e6)
                count += 1
    return {name: {"min": min(values), "median": float(np.median(values))} for name, values in spent.items()}


def error_of(baseline: baselines.Baseline, wanted: Mapping[str, Any]) -> float | None:
    """Largest error of the first sample, relative to the largest value; None where results are not comparable."""
    result = baseline.result()
    if result is None or "accumulators" not in wanted:
        return None
    first = wanted["y"][0]
    return float(np.abs(result[0] - first).max() / max(float(np.abs(first).max()), 1e-30))


def measure(shape: Shape, context: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row: red, or the kernel's and the baselines' numbers."""
    inputs = shape.inputs()
    wanted = kernel_gate.expected_results(shape, inputs)
    prepared = kernel_gate.prepare(shape, inputs, wanted, context)
    if prepared.red:
        return {"red": prepared.red}
    names = tuple(name for name in baselines.NAMES if not arguments.baseline or name in arguments.baseline)
    if shape.op in PRODUCTS:
        inputs["y_peak"] = float(np.abs(wanted["y"][0]).max())
    others = baselines.baselines(shape.op, inputs, context.threads, names)
    ready = {name: other for name, other in others.items() if isinstance(other, baselines.Baseline)}
    kernel_gate.clear(prepared, shape)
    busy = quiet.others_busy(0.1)
    runs = {"kernel": lambda: context.run(prepared.calls), **{name: other.run for name, other in ready.items()}}
    us = take_turns(runs, arguments.rounds, arguments.seconds)
    red = kernel_gate.still_right(prepared, shape, wanted)
    if red:
        return {"red": f"{red}, after the timed calls"}
    if shape.op in PRODUCTS:
        peak = peaks.product_peak(context.isa, shape.case.weight_bits, context.threads)
    else:
        peak = peaks.copy_peak(shape.nbytes, context.threads)
    compare = {name: compared(us, name, error_of(other, wanted)) for name, other in ready.items()}
    missing = {name: {"missing": other.reason} for name, other in others.items() if name not in ready}
    own = {"us": us["kernel"], **figures(shape, us["kernel"], peak), "form": prepared.form, "others_busy": busy}
    return {**own, "baselines": compare | missing}


def done_rows(results: Path, name: str) -> set[str]:
    """Keys of the green rows that a commit has in the results."""
    if not results.is_file():
        return set()
    rows = (json.loads(line) for line in results.read_text(encoding="utf-8").splitlines())
    return {json.dumps(row["key"], sort_keys=True) for row in rows if row["commit"] == name and "red" not in row}


def measure_isa(arguments: argparse.Namespace) -> int:
    """All rows of one instruction set in this process; the exit code."""
    from dq_kernels.cpu.library import Context

    from dq_deploy.bench.environment import describe_environment

    name, (isa,), code = commit(), arguments.isa, 0
    done = set() if arguments.again else done_rows(arguments.results, name)
    for threads in arguments.threads:
        print(
            f"\n{isa}, {threads} thread{'s' if threads > 1 else ''}\n{HEADER}  x: times the kernel's time", flush=True
        )
        environment = describe_environment(threads=threads)
        with Context(threads=threads, isa=isa) as context:
            for shape in variants(arguments):
                key = key_of(shape, isa, threads)
                if json.dumps(key, sort_keys=True) in done:
                    continue
                row = measure(shape, context, arguments)
                code = RED if "red" in row else code
                print(line_of(key, row), flush=True)
                with arguments.results.open("a", encoding="utf-8") as stream:
                    line = {"key": key, "count": shape.count, **row, "commit": name, "environment": environment}
                    stream.write(json.dumps(line, sort_keys=True) + "\n")
    return code


def parsed(words: list[str] | None) -> argparse.Namespace:
    """The options."""
    from dq_kernels.cpu.library import known_isas

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", action="append", choices=OPS, help="repeatable; all by default")
    parser.add_argument("--model", action="append", choices=tuple(MODELS), help="repeatable; all by default")
    parser.add_argument("--shape", action="append", help="only shapes whose name holds this text; repeatable")
    parser.add_argument("--isa", action="append", choices=known_isas(), help="repeatable; all of this CPU by default")
    parser.add_argument("--threads", type=int, action="append", help="repeatable; 1 and 2 by default")
    parser.add_argument(
        "--weights", type=int, action="append", choices=(4, 8), help="bits, repeatable; both by default"
    )
    parser.add_argument("--baseline", action="append", choices=baselines.NAMES, help="repeatable; all by default")
    parser.add_argument("--quick", action="store_true", help="of each op and model the three shapes that matter most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="of a turn")
    parser.add_argument("--again", action="store_true", help="measure what this commit has in the results already")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "kernels.jsonl")
    parser.add_argument("--machine", type=Path, default=Path(tempfile.gettempdir()) / "dq-avx2-machine")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    arguments.op, arguments.model = arguments.op or OPS, arguments.model or tuple(MODELS)
    arguments.isa = arguments.isa or [isa for isa in known_isas() if isa != "portable"]
    arguments.threads, arguments.weights = arguments.threads or [1, 2], arguments.weights or [4, 8]
    return arguments


def main(words: list[str] | None = None) -> int:
    """Measure what the options ask for; 3 where a kernel is red."""
    words = sys.argv[1:] if words is None else words
    arguments = parsed(words)
    if arguments.device == "cuda":
        from benchmarks.kernels import gpu as gpu_kernels

        return gpu_kernels.measure_gpu(arguments)
    if arguments.in_process:
        return measure_isa(arguments)
    from benchmarks.machine.avx2 import prepare

    code = 0
    for isa in arguments.isa:
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        if isa in SHARED_CPU:
            environment |= prepare(arguments.machine, avx_vnni=SHARED_CPU[isa])
        own = [word for i, word in enumerate(words) if word != "--isa" and (i == 0 or words[i - 1] != "--isa")]
        command = [sys.executable, "-m", "benchmarks.kernels.run", *own, "--isa", isa, "--in-process"]
        code = max(code, subprocess.run(command, env=environment, check=False).returncode, key=abs)
    return code


if __name__ == "__main__":
    sys.exit(main())
