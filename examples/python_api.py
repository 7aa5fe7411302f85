"""The whole path through the Python API: load, quantize, save, export, run, verify, time.

    python examples/python_api.py --out api-out

Uses the quick method `minmax`; give `quantize` method="dilatequant" for the trained one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import dq_deploy

MODEL = Path(__file__).resolve().parent / "mnist-ddpm-32"


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run every public function once; returns the numbers it prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("api-out"), help="folder for the results")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of the float model")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps to calibrate")
    parser.add_argument("--samples", type=int, default=32, help="calibration samples")
    args = parser.parse_args(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"error: {args.out}: {error.strerror}; choose another place") from error

    # a float model becomes a record: integers, scales, step tables, the float rest
    denoiser = dq_deploy.load_model(args.model)
    record = dq_deploy.quantize(
        denoiser, method="minmax", weight_bits=4, activation_bits=8, steps=args.steps, samples=args.samples
    )
    dq_deploy.save_record(record, args.out / "model.safetensors")
    record = dq_deploy.load_record(args.out / "model.safetensors")
    print(f"{len(record.layers)} integer layers, {record.steps} step buckets")

    # the record becomes an engine file; its manifest says what it is
    engine = args.out / "unet.onnx"
    manifest = dq_deploy.export(record, engine, target="onnxruntime", mode="exact")
    print(f"exported {engine} from record {str(manifest.record_sha256)[:12]}")

    # run it: named numpy arrays in and out; samples of one batch may be at different steps
    rng = np.random.default_rng(0)
    feeds = {
        "sample": rng.standard_normal((2, 1, 32, 32)).astype(np.float32),
        "timestep": np.array([950, 50], np.float32),
        "class_labels": np.array([3, 7], np.int64),
    }
    with dq_deploy.open_engine(engine, threads=1) as runner:
        noise = runner.run(feeds)[runner.outputs[0].name]
    print(f"predicted noise {noise.shape}, standard deviation {noise.std():.3f}")

    # the proof, and the time
    report = dq_deploy.verify(record, engine)
    bench = dq_deploy.benchmark(engine)
    numbers = {
        "max_code_difference": report.max_code_difference,
        "max_accumulator_difference": report.max_accumulator_difference,
        "integer_mac_share": report.integer_mac_share,
        "latency_ms": bench.latency_ms.p50,
    }
    for name, value in numbers.items():
        print(f"{name} {value:.4g}")
    return numbers


if __name__ == "__main__":
    main()
