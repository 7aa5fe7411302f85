"""OpenVINO NNCF post-training quantization, mixed preset, of the float graph."""

from __future__ import annotations

import nncf
import numpy as np
import openvino as ov
from job import Job, latency_ms


def compiled(model, threads):
    """A callable for the CPU; float32 outside integer layers, as all peers have it."""
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(model, "CPU", options).create_infer_request()
    return lambda inputs: np.array(request.infer(inputs)[0])


def main() -> None:
    """Quantize, time, draw."""
    job = Job()
    model = ov.Core().read_model(job["float_onnx"])
    batches = list(job.calibration())
    quantized = nncf.quantize(
        model,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(batches),
        fast_bias_correction=True,
    )
    ov.save_model(quantized, job.work / "int8.xml", compress_to_fp16=False)
    job.calibrated()
    size = sum((job.work / name).stat().st_size for name in ("int8.xml", "int8.bin"))
    float_ms = latency_ms(compiled(ov.Core().read_model(job["float_onnx"]), job.threads), job.example())
    job.finish(
        compiled(ov.Core().read_model(job.work / "int8.xml"), job.threads),
        packages=("nncf", "openvino"),
        size_bytes=size,
        note="nncf.quantize, mixed preset, fast bias correction, inference precision float32",
        float_latency_ms=float_ms,
    )


if __name__ == "__main__":
    main()
