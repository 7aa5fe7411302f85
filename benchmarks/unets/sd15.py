"""How long the full-size Stable Diffusion 1.5 UNet takes from weights to plan, and how much memory each stage needs.

860 million parameters with random weights, from the public configuration: neither time nor memory depends on their
values. The conditions and calibration latents are random too. Each stage is a process of its own.

    python -m benchmarks.unets.sd15 --weights 4 --steps 4 --target onnxruntime --out sd15-out

One JSON line with seconds, peak resident memory and file sizes of each stage is appended to
benchmarks/results/sd15-pipeline.jsonl. A build stage follows where dq-build and the target have one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine.commit import commit
from benchmarks.unets.denoisers import sd15_denoiser
from dq_deploy.bench.environment import describe_environment
from dq_deploy.engines.tensorrt.library import RUNTIMES
from dq_deploy.manifest.plan import read_plan_manifest
from dq_deploy.manifest.values import PlanManifest

ROOT = Path(__file__).resolve().parents[1]


def quantize_stage(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Random weights to a record."""
    from dq_deploy.calibration import CalibrationSource
    from dq_deploy.methods import quantize
    from dq_deploy.record import save_record

    denoiser = sd15_denoiser()
    parameters = sum(p.numel() for p in denoiser.module.parameters())
    marks: dict[str, float] = {}
    record = quantize(
        denoiser,
        method="minmax",
        weight_bits=arguments.weights,
        activation_bits=8,
        steps=arguments.steps,
        samples=1,
        memory_gib=4.0,
        calibration=CalibrationSource(kind="random"),
        progress=lambda report: marks.update({report.stage: time.perf_counter()}),
    )
    path = folder / "sd15.pt"
    save_record(record, path)
    integer = sum(part.w_code.size for layer in record.layers.values() for part in layer.parts)
    return {
        "parameters": parameters,
        "integer_weights": integer,
        "layers": len(record.layers),
        "weight_search_s": round(marks["weights"] - marks["ranges"], 1),
        "record_mib": path.stat().st_size / 2**20,
    }


def export_stage(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The record to ONNX with external data."""
    from dq_deploy import export, load_record

    path = folder / "sd15.onnx"
    start = time.perf_counter()
    record = load_record(folder / "sd15.pt")
    loaded = time.perf_counter() - start
    manifest = export(record, path, target=arguments.target)
    integer, macs = [layer for layer in manifest.layers if layer.integer], manifest.macs
    assert macs is not None  # an export counts them
    work = sum(macs.layers[layer.name] for layer in integer)
    data = path.with_name(path.name + ".data")
    return {
        "record_load_s": round(loaded, 1),
        "integer_layers": len(integer),
        "declared_integer_mac_share": work / macs.of_all,
        "onnx_mib": path.stat().st_size / 2**20,
        "data_mib": data.stat().st_size / 2**20 if data.is_file() else 0.0,
    }


def build_stage(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The ONNX file to a plan by dq-build, which runs the builder in its own process."""
    plan = folder / "sd15.plan"
    command = [
        *(sys.executable, "-m", "dq_deploy.cli.build"),
        *("--onnx", str(folder / "sd15.onnx"), "--out", str(plan)),
        *("--runtime", arguments.target),
    ]
    if arguments.compute_capability:
        command += ["--compute-capability", arguments.compute_capability]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise SystemExit(f"dq-build ended with {done.returncode}: {lines[-1]}")
    manifest = read_plan_manifest(plan, check_hash=False)
    return {
        "plan_mib": plan.stat().st_size / 2**20,
        "integer_mac_share": integer_share(manifest),
        "build": None if manifest.build is None else manifest.build.to_json(),
    }


def integer_share(manifest: PlanManifest) -> float:
    """Share of all multiply-accumulates that the plan itself shows in integers, by its manifest."""
    assert manifest.macs is not None  # an export counts them
    work = sum(row.macs for row in manifest.layers_built or () if row.executed == "integer")
    return work / manifest.macs.of_all


STAGES = {"quantize": quantize_stage, "export": export_stage, "build": build_stage}


def run_stage(name: str, folder: Path, arguments: argparse.Namespace) -> None:
    """One stage in this process; prints its numbers as the last line."""
    start = time.perf_counter()
    numbers = STAGES[name](folder, arguments)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    seconds = round(time.perf_counter() - start, 1)
    print(json.dumps({"stage": name, "seconds": seconds, "peak_gib": max(own, children) / 2**20, **numbers}))


def measured(name: str, folder: Path, argv: list[str]) -> dict[str, Any]:
    """Numbers of one stage, run in a child process."""
    command = [sys.executable, "-m", "benchmarks.unets.sd15", *argv, "--stage", name, "--out", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"stage {name} ended with {done.returncode}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    """Run the stages, print a row each and append the line to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--target", default="onnxruntime")
    parser.add_argument("--compute-capability", default="")
    parser.add_argument("--stages", default="quantize,export,build", help="comma list; earlier files are taken as is")
    parser.add_argument("--out", type=Path, help="folder for the files; a temporary one by default")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "sd15-pipeline.jsonl")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        run_stage(arguments.stage, arguments.out, arguments)
        return
    argv = ["--weights", str(arguments.weights), "--steps", str(arguments.steps), "--target", arguments.target]
    argv += ["--compute-capability", arguments.compute_capability]
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        stages = {}
        for name in arguments.stages.split(","):
            if name == "build" and arguments.target not in RUNTIMES:
                continue
            row = measured(name, folder, argv)
            stages[row.pop("stage")] = row
            print(f"{name}: {row['seconds']:.0f} s, {row['peak_gib']:.2f} GiB peak; {json.dumps(row)}", flush=True)
    line = {
        "bits": f"W{arguments.weights}A8",
        "steps": arguments.steps,
        "target": arguments.target,
        "stages": stages,
        "commit": commit(),
        "environment": describe_environment(threads=None),
    }
    with arguments.results.open("a") as stream:
        stream.write(json.dumps(line, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
