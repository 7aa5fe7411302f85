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


def write_quantized(source, target, ready, batches, *, large=False, left=()):
    """Write `target`, the QDQ graph of `source`: unsigned activations, signed weights a channel, products alone.

    `ready` is written in between; `large` weights go into files beside; the nodes `left` stay float.
    """
    more = {"save_as_external_data": True, "all_tensors_to_one_file": True} if large else {}
    # symbolic shape inference does not get through the graph; the plain one does
    quant_pre_process(str(source), str(ready), skip_symbolic_shape=True, **more)
    quantize_static(
        str(ready),
        str(target),
        Reader(batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        op_types_to_quantize=PRODUCTS,
        nodes_to_exclude=list(left),
        use_external_data_format=large,
    )


def main() -> None:
    """Quantize, time, draw."""
    job = Job()
    target = job.work / "int8.onnx"
    write_quantized(job["float_onnx"], target, job.work / "ready.onnx", job.calibration(), left=job.float_nodes)
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
