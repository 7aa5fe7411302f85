"""How fast the CIFAR-10 DDPM UNet shape runs in integers, beside the float graph on the same engine.

35.7 million parameters with random weights: time does not depend on their values, and images are not looked at.

    python -m benchmarks.unets.cifar --bits 4/8 --bits 8/8

Each row is one engine against the float graph of the same tracer, the two taking turns in at least 7 rounds.
Rows are appended to benchmarks/results/cifar_unet.jsonl.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import dq_deploy
from benchmarks.machine.commit import commit
from benchmarks.unets.denoisers import cifar_denoiser
from dq_deploy.bench import BenchOptions
from dq_deploy.verify.share import attest

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = (("onnxruntime", "exact"), ("onnxruntime", "fast"), ("openvino", "exact"))


def measure(record: dq_deploy.Record, target: str, mode: str, bits: str, threads: int, rounds: int) -> dict:
    """Export, attest and time one engine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "unet.onnx"
        start = time.perf_counter()
        dq_deploy.export(record, path, target=target, mode=mode)
        export_s = time.perf_counter() - start
        share = attest(path).integer_mac_share
        options = BenchOptions(batches=(1,), rounds=rounds, threads=threads, seconds=1.0)
        report = dq_deploy.benchmark(path, baseline=True, record=record, options=options, integer_mac_share=share)
    row = report.to_json()
    row.pop("engine_path")
    return {"bits": bits, "export_s": export_s, **row}


def main() -> None:
    """Measure what the options ask for, print a row each and append it to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", action="append", help="weight/activation bits, repeatable; 4/8 and 8/8 by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--variant", action="append", help="target/mode, repeatable; all by default")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "cifar_unet.jsonl")
    arguments = parser.parse_args()
    denoiser = cifar_denoiser()
    for bits in arguments.bits or ["4/8", "8/8"]:
        weights, activations = (int(b) for b in bits.split("/"))
        record = dq_deploy.quantize(
            denoiser, method="minmax", weight_bits=weights, activation_bits=activations, steps=20, samples=4
        )
        for target, mode in VARIANTS:
            if arguments.variant and f"{target}/{mode}" not in arguments.variant:
                continue
            row = measure(record, target, mode, f"W{weights}A{activations}", arguments.threads, arguments.rounds)
            row["commit"] = commit()
            row["process_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            latency, baseline = row["latency_ms"]["p50"], row["baseline_latency_ms"]["p50"]
            print(
                f"{row['bits']} {target} {mode}: {latency:.1f} ms, float {baseline:.1f} ms, "
                f"speedup {row['speedup']:.2f}, "
                f"integer share of all MACs {row['integer_mac_share']:.4f}, {row['file_mib']:.1f} MiB file, "
                f"{row['peak_mib']:.0f} MiB peak (float {row['baseline_peak_mib']:.0f}), export {row['export_s']:.1f} s"
            )
            with arguments.results.open("a") as stream:
                stream.write(json.dumps(row, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
