"""Stands for Triton's ONNX Runtime backend, which its packages on PyPI lack: a backend in Python, run by the server.

It is copied as model.py into a backend folder of that name, and imports nothing of this project.
"""

from __future__ import annotations

import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, args):
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.log = os.environ.get("DQ_BATCHES")

    def execute(self, requests):
        """One run for all requests of the batch, as the real backend does."""
        tensors = [[pb_utils.get_input_tensor_by_name(r, name).as_numpy() for r in requests] for name in self.inputs]
        sizes = [len(value) for value in tensors[0]]
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{sizes}\n")
        try:
            found = self.session.run(
                self.outputs, {n: np.concatenate(v) for n, v in zip(self.inputs, tensors, strict=True)}
            )
        except Exception as error:
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))) for _ in requests]
        ends = np.cumsum(sizes)
        return [
            pb_utils.InferenceResponse(
                output_tensors=[
                    pb_utils.Tensor(name, np.ascontiguousarray(value[end - size : end]))
                    for name, value in zip(self.outputs, found, strict=True)
                ]
            )
            for size, end in zip(sizes, ends, strict=True)
        ]
