"""OpenVINO NNCF post-training quantization, mixed preset, of the float graph."""

from __future__ import annotations

import nncf
import numpy as np
import openvino as ov
from job import Job


def compiled(model, threads):
    """A callable for the CPU; float32 outside integer layers, as all peers have it."""
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(model, "CPU", options).create_infer_request()
    return lambda inputs: np.array(request.infer(inputs)[0])


def stored(value):
    """Name of the constant behind a value, through what only reshapes or converts it, or None for an activation."""
    node = value.get_source_output().get_node()
    while node.get_type_name() in {"Convert", "Reshape", "Transpose", "Unsqueeze"}:
        node = node.input_value(0).get_node()
    return node.get_friendly_name() if node.get_type_name() == "Constant" else None


def main() -> None:
    """Quantize, time, draw."""
    job = Job()
    model = ov.Core().read_model(job["float_onnx"])
    products = [node for node in model.get_ops() if node.get_type_name() in {"MatMul", "Convolution"}]
    weights = {node.get_friendly_name(): [stored(value) for value in node.inputs()] for node in products}
    left = [n for n, w in weights.items() if not any(w) or any("time_embedding" in (name or "") for name in w)]
    if len(left) != len(job.float_nodes):
        raise ValueError(f"{left} would stay float, expected as many as {job.float_nodes}")
    batches = list(job.calibration())
    job.begin()
    quantized = nncf.quantize(
        model,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(batches),
        fast_bias_correction=True,
        ignored_scope=nncf.IgnoredScope(names=left),
    )
    ov.save_model(quantized, job.work / "int8.xml", compress_to_fp16=False)
    job.calibrated()
    size = sum((job.work / name).stat().st_size for name in ("int8.xml", "int8.bin"))
    run = compiled(ov.Core().read_model(job.work / "int8.xml"), job.threads)
    job.finish(
        run,
        timed=(compiled(ov.Core().read_model(job["float_onnx"]), job.threads), run),
        layers=len(products) - len(left),
        packages=("nncf", "openvino"),
        size_bytes=size,
        note="nncf.quantize, mixed preset, fast bias correction, time embedding and products between activations "
        "ignored, inference precision float32",
    )


if __name__ == "__main__":
    main()
