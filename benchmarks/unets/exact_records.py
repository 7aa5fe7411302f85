"""Whole records on every engine there is without a GPU: how many codes and accumulators differ from the numerics.

    python -m benchmarks.methods.run --work work                              # makes records of every method
    python -m benchmarks.unets.exact_records work/digits/*-w4a4.pt
    python -m benchmarks.unets.exact_records --engine native --engine openvino model.pt

Each row is one record on one engine, as `dq-verify --exact` judges it; exit code 1 where one is not. The graph for
TensorRT is its float32 variant, run by ONNX Runtime. Rows are appended to benchmarks/results/exact_records.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import dq_deploy
from benchmarks.machine.commit import commit
from dq_deploy.bench.environment import describe_environment
from dq_deploy.errors import DqError
from dq_deploy.verify import Report

RESULTS = Path(__file__).resolve().parents[1] / "results" / "exact_records.jsonl"
EXPORTS: dict[str, dict[str, str]] = {
    "native": {},
    "onnxruntime": {"target": "onnxruntime"},
    "openvino": {"target": "openvino"},
    "tensorrt": {"target": "tensorrt", "float_type": "float32"},
    "tensorrt-rtx": {"target": "tensorrt-rtx", "float_type": "float32"},
}


def proven(path: Path, engine: str, folder: Path, threads: int) -> Report:
    """The report of one record on one engine; a graph is written into the folder."""
    record, run = dq_deploy.load_record(path), path
    if EXPORTS[engine]:
        run = folder / "unet.onnx"
        dq_deploy.export(record, run, **EXPORTS[engine])
    return dq_deploy.verify(record, run, threads=threads)


def row_of(report: Report) -> dict[str, Any]:
    """What is kept of a report."""
    return {
        "runtime": report.runtime,
        "exact": report.exact,
        "layers": report.layers_total,
        "layers_compared": report.layers_compared,
        "layers_integer": sum(layer.integer for layer in report.layers),
        "integer_mac_share": report.integer_mac_share,
        "codes": report.codes_compared,
        "codes_probed": report.codes_probed,
        "accumulators": report.accumulators_compared,
        "accumulators_probed": report.accumulators_probed,
        "largest_code_difference": report.max_code_difference,
        "largest_accumulator_difference": report.max_accumulator_difference,
        "failures": report.failures[:3],
        "seconds": round(report.seconds, 1),
    }


def main() -> int:
    """Verify, print and append; 1 where a row is not exact, 2 where a record cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--engine", action="append", choices=tuple(EXPORTS), help="repeatable; all by default")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "2")))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    try:
        for path in arguments.records:
            dq_deploy.load_record(path)
    except DqError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    failures = 0
    for path in arguments.records:
        for engine in arguments.engine or EXPORTS:
            found: dict[str, Any] = {"record": path.stem, "engine": engine}
            try:
                with tempfile.TemporaryDirectory(prefix="exact-") as folder:
                    found |= row_of(proven(path, engine, Path(folder), arguments.threads))
            except DqError as error:
                found |= {"exact": False, "failures": [str(error)]}
            failures += not found["exact"]
            print(json.dumps(found), flush=True)
            found |= {"commit": commit(), "environment": describe_environment(threads=arguments.threads)}
            with arguments.results.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(found, sort_keys=True) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
