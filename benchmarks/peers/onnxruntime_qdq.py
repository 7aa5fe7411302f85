"""ONNX Runtime's static quantization: QDQ, min/max calibration, weights a channel, activations uint8."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort
from job import Job
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

# with its default list of operators the sine of the timestep is quantized as well: images of 8 dB, nothing to compare
PRODUCTS = ["Conv", "Gemm", "MatMul"]


class Reader(CalibrationDataReader):
    """Calibration batches under the graph's input names."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def get_next(self):
        """The next batch or None."""
        return next(self.batches, None)


def session(path, threads):
    """A callable for the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    found = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: found.run(None, inputs)[0]


def main() -> None:
    """Quantize, time, draw."""
    job = Job()
    ready, target = job.work / "ready.onnx", job.work / "int8.onnx"
    # symbolic shape inference does not get through the graph; the plain one does
    quant_pre_process(job["float_onnx"], str(ready), skip_symbolic_shape=True)
    quantize_static(
        str(ready),
        str(target),
        Reader(job.calibration()),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        op_types_to_quantize=PRODUCTS,
        nodes_to_exclude=job.float_nodes,
    )
    job.calibrated()
    quantized = session(target, job.threads)
    products = sum(node.op_type in PRODUCTS for node in onnx.load(target).graph.node)
    job.finish(
        quantized,
        timed=(session(job["float_onnx"], job.threads), quantized),
        layers=products - len(job.float_nodes),
        packages=("onnxruntime", "onnx"),
        size_bytes=Path(target).stat().st_size,
        note="quant_pre_process, then quantize_static QDQ U8S8, weights a channel, MinMax; Conv, Gemm, MatMul but of "
        "the time embedding and between activations",
    )


if __name__ == "__main__":
    main()
