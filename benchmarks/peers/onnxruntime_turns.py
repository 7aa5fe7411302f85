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
    """Write `qdq.onnx`."""
    if engine != "onnxruntime qdq" or (folder / "qdq.onnx").is_file():
        return
    from onnxruntime_qdq import write_quantized

    large = json.loads((folder / "model.json").read_text(encoding="utf-8"))["large"]
    target, batches = folder / "unfinished.onnx", calibration(folder, 1 if large else CALIBRATION_BATCH)
    write_quantized(folder / "float.onnx", target, folder / "ready.onnx", batches, large=large)
    target.rename(folder / "qdq.onnx")


if __name__ == "__main__":
    main(opened, prepare)
