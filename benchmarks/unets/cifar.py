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
import subprocess
import tempfile
import time
from pathlib import Path

import dq_deploy
from dq_deploy.bench import BenchOptions
from dq_deploy.models import Denoiser, build_denoiser
from dq_deploy.verify.share import attest

ROOT = Path(__file__).resolve().parents[1]
CONFIG = {
    "_class_name": "UNet2DModel",
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [128, 256, 256, 256],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 0,
    "act_fn": "silu",
    "attention_head_dim": None,
    "norm_num_groups": 32,
    "norm_eps": 1e-6,
    "num_class_embeds": None,
}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "clip_sample": True,
    "timestep_spacing": "leading",
    "variance_type": "fixed_large",
}
VARIANTS = (("onnxruntime", "exact"), ("onnxruntime", "fast"), ("openvino", "exact"))


def cifar_denoiser() -> Denoiser:
    """The denoiser with seeded random weights."""
    import torch

    torch.manual_seed(0)
    module = build_denoiser("unet2d", CONFIG)
    return Denoiser(
        family="unet2d",
        module=module,
        config=dict(CONFIG),
        scheduler_config=dict(SCHEDULER),
        source="cifar-10 ddpm shape, random weights, seed 0",
        source_sha256="0" * 64,
    )


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


def commit() -> str:
    """Short name of the commit that is measured."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


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
