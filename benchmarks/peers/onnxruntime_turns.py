"""ONNX Runtime as its documentation runs it: the float32 graph, and its own static quantization of it (QDQ)."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime as ort
from turns import Opened, Settings, calibration, main

CALIBRATION_BATCH = 8


def opened(settings: Settings) -> Opened:
    """A session for the CPU with the batch fixed."""
    folder = Path(settings.folder)
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.add_free_dimension_override_by_name("B", settings.batch)
    quantized = settings.engine == "onnxruntime qdq"
    path = folder / ("qdq.onnx" if quantized else "float.onnx")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(inputs):
        return session.run(None, {name: inputs[name] for name in names})[0]

    return Opened(run, "int8 and float32" if quantized else "float32")


def prepare(folder: Path, engine: str) -> None:
    """Write `qdq.onnx`: unsigned activations, signed weights a channel, products alone.

    With the default list of operators the sine of the timestep is quantized as well, and pictures are lost.
    """
    if engine != "onnxruntime qdq" or (folder / "qdq.onnx").is_file():
        return
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from onnxruntime_qdq import PRODUCTS, Reader

    large = json.loads((folder / "model.json").read_text(encoding="utf-8"))["large"]
    ready, target = folder / "ready.onnx", folder / "unfinished.onnx"
    # symbolic shape inference does not get through the graph; the plain one does
    more = {"save_as_external_data": True, "all_tensors_to_one_file": True} if large else {}
    quant_pre_process(str(folder / "float.onnx"), str(ready), skip_symbolic_shape=True, **more)
    quantize_static(
        str(ready),
        str(target),
        Reader(calibration(folder, 1 if large else CALIBRATION_BATCH)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        op_types_to_quantize=PRODUCTS,
        use_external_data_format=large,
    )
    target.rename(folder / "qdq.onnx")


if __name__ == "__main__":
    main(opened, prepare)
