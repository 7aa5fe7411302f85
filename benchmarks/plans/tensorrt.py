"""What TensorRT-RTX makes of the demo model and of the CIFAR-10 UNet shape, on a machine without a GPU.

    python -m benchmarks.plans.tensorrt
    python -m benchmarks.plans.tensorrt --model cifar --bits 8/8 --conv native

Each row is one plan: seconds and peak memory of its build, its size and how much of that is source of kernels, the
share of all multiply-accumulates that the plan itself says run in integers; a row more is the model's float16 plan.
Weights of the CIFAR shape are random: neither size nor build depends on their values. Rows are appended to
benchmarks/results/tensorrt_plans.jsonl. No plan is run here; for that see benchmarks/plans/gpu.py.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import dq_deploy
from benchmarks.machine.commit import commit
from benchmarks.unets.denoisers import denoiser_of
from dq_deploy.bench.environment import describe_environment
from dq_deploy.engines.tensorrt.build.builder import BuildOptions, build_plan
from dq_deploy.manifest.plan import write_plan_manifest
from dq_deploy.manifest.values import EngineManifest
from dq_deploy.targets import float_graph
from dq_deploy.verify.plan.attestation import PlanAttestation, attest_plan

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = "tensorrt-rtx"
MIB = 2**20


def build(path: Path, capability: str | None, exported: EngineManifest) -> tuple[dict[str, Any], PlanAttestation]:
    """Build one ONNX file; what the build took, and what the plan says of the exported layers."""
    plan = path.with_suffix(".plan")
    options = BuildOptions(runtime=RUNTIME, compute_capabilities=(capability,) if capability else ())
    manifest = build_plan(path, plan, options, manifest=exported)
    found = attest_plan(plan, manifest)
    write_plan_manifest(plan, manifest)
    took = manifest.build
    assert took is not None  # the build tells
    facts = {
        "compute_capability": capability,
        "onnx_mib": path.stat().st_size / MIB,
        "build_s": took.seconds,
        "build_peak_mib": took.peak_mib,
        "plan_mib": plan.stat().st_size / MIB,
        "source_mib": (took.text_bytes or 0) / MIB,
        "integer_mac_share": found.integer_mac_share,
        "runtime_version": manifest.runtime_version,
    }
    return facts, found


def measure(
    record: dq_deploy.Record, folder: Path, conv: str, float_type: str, capability: str | None
) -> dict[str, Any]:
    """Export, build and attest one form."""
    path = folder / "unet.onnx"
    start = time.perf_counter()
    exported = dq_deploy.export(record, path, target=RUNTIME, float_type=float_type, conv=conv)
    export_s = time.perf_counter() - start
    facts, found = build(path, capability, exported)
    executed: dict[str, int] = {}
    for row in found.to_json()["layers"]:
        executed[row["executed"]] = executed.get(row["executed"], 0) + 1
    return {
        "conv": conv,
        "float_type": float_type,
        "export_s": export_s,
        **facts,
        "layers": executed,
        "im2col_mib_a_sample": sum(layer.im2col_bytes or 0 for layer in exported.layers) / MIB,
    }


def measure_float(record: dq_deploy.Record, folder: Path, capability: str | None) -> dict[str, Any]:
    """The float16 plan of the same model, the control: no layer of it is integer."""
    exported = dq_deploy.export(record, folder / "unet.onnx", target=RUNTIME)
    path = folder / "float.onnx"
    float_graph(exported, path, record=record, float_type="float16")
    return {"float_type": "float16", **build(path, capability, exported)[0]}


def append(row: dict[str, Any], results: Path) -> None:
    """Print a row and add it to the results."""
    print(json.dumps(row), flush=True)
    row |= {"commit": commit(), "environment": describe_environment(threads=None)}
    with results.open("a") as stream:
        stream.write(json.dumps(row, sort_keys=True) + "\n")


def main() -> None:
    """Build what the options ask for, print a row each and append it to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=("demo", "cifar"), help="repeatable; both by default")
    parser.add_argument("--bits", action="append", help="weight/activation bits, repeatable; 8/8 and 4/8 by default")
    parser.add_argument("--conv", action="append", choices=("gemm", "native"), help="repeatable; both by default")
    parser.add_argument("--float-type", default="float16")
    parser.add_argument("--compute-capability", help="as 8.9; by default the library's portable set")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "tensorrt_plans.jsonl")
    arguments = parser.parse_args()
    for model in arguments.model or ["demo", "cifar"]:
        denoiser = denoiser_of(model)
        for index, bits in enumerate(arguments.bits or ["8/8", "4/8"]):
            weights, activations = (int(b) for b in bits.split("/"))
            options = {"weight_bits": weights, "activation_bits": activations, "steps": 20, "samples": 4}
            record = dq_deploy.quantize(denoiser, method="minmax", **options)
            for conv in arguments.conv or ["gemm", "native"]:
                with tempfile.TemporaryDirectory() as folder:
                    row = measure(record, Path(folder), conv, arguments.float_type, arguments.compute_capability)
                append({"model": model, "bits": f"W{weights}A{activations}"} | row, arguments.results)
            if not index:
                with tempfile.TemporaryDirectory() as folder:
                    row = measure_float(record, Path(folder), arguments.compute_capability)
                append({"model": model, "bits": "float"} | row, arguments.results)


if __name__ == "__main__":
    main()
