"""A Triton server in the test's own process: the loop's model.py with its requests, and ONNX Runtime for the step."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

TYPES = {"TYPE_FP32": np.float32, "TYPE_INT64": np.int64, "TYPE_INT32": np.int32, "TYPE_STRING": object}


class Tensor:
    def __init__(self, name, array):
        assert array.flags.c_contiguous
        self.name, self.array = name, array

    def as_numpy(self):
        return self.array


class TritonError(Exception):
    INTERNAL, INVALID_ARG, CANCELLED = "internal", "invalid", "cancelled"

    def __init__(self, message, code="internal"):
        super().__init__(message)
        self.code = code

    def message(self):
        return str(self)


@dataclass
class Response:
    output_tensors: list = field(default_factory=list)
    error: Any = None


@dataclass
class Request:
    """A request of a client; `cancelled_after` calls of the denoiser the client is gone."""

    tensors: dict
    cancelled_after: int = 10**9
    asked: int = 0

    def is_cancelled(self):
        self.asked += 1
        return self.asked > self.cancelled_after


class _StepResponse:
    def __init__(self, tensors, error=None):
        self.tensors, self._error = tensors, error

    def has_error(self):
        return self._error is not None

    def error(self):
        return TritonError(self._error)


def _found(owner, name):
    return owner.tensors.get(name)


class Served:
    """The models of a repository.

    Attributes:
        calls: shape of the sample of each call of the denoiser.
    """

    def __init__(self, repository: Path, name: str) -> None:
        import onnxruntime

        self.calls: list[tuple[int, ...]] = []
        self._inputs = inputs_of(repository / f"{name}_denoiser" / "config.pbtxt")
        engine = repository / f"{name}_denoiser" / "1" / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(engine), options, providers=["CPUExecutionProvider"])
        sys.modules["triton_python_backend_utils"] = self._module()
        try:
            place = repository / name / "1" / "model.py"
            spec = importlib.util.spec_from_file_location(f"served_{name}", place)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        finally:
            del sys.modules["triton_python_backend_utils"]
        self.model = module.TritonPythonModel()
        self.model.initialize({"model_config": json.dumps({"parameters": parameters_of(place.parent.parent)})})

    def _module(self):
        served = self

        class InferenceRequest:
            def __init__(self, *, model_name, requested_output_names, inputs, preferred_memory):
                self.names, self.inputs = requested_output_names, inputs

            def exec(self):
                return served._step({tensor.name: tensor.array for tensor in self.inputs}, self.names)

        module = types.ModuleType("triton_python_backend_utils")
        module.Tensor, module.TritonError, module.InferenceResponse = Tensor, TritonError, Response
        module.InferenceRequest = InferenceRequest
        module.PreferredMemory, module.TRITONSERVER_MEMORY_CPU = lambda *place: place, 0
        module.get_input_tensor_by_name = module.get_output_tensor_by_name = _found
        return module

    def _step(self, arrays, names):
        """One step as the server runs it: types and shapes are held against config.pbtxt, columns become vectors."""
        for name, (dtype, dims, column) in self._inputs.items():
            array = arrays[name]
            fits = array.dtype == dtype and array.ndim == len(dims) + 1
            fits = fits and all(want in (-1, have) for want, have in zip(dims, array.shape[1:], strict=True))
            if not fits:
                return _StepResponse({}, f"unexpected shape for input '{name}'")
            arrays[name] = array[:, 0] if column else array
        self.calls.append(next(iter(arrays.values())).shape)
        return _StepResponse({n: Tensor(n, v) for n, v in zip(names, self._session.run(names, arrays), strict=True)})

    def ask(self, *, cancelled_after=10**9, **inputs):
        """The response to a request; texts become bytes, as Triton hands them on."""
        request = Request({name: Tensor(name, _array(name, value)) for name, value in inputs.items()}, cancelled_after)
        return self.model.execute([request])[0]

    def pictures(self, **inputs):
        response = self.ask(**inputs)
        assert response.error is None, response.error
        return response.output_tensors[0].array


def _array(name, value):
    if name in ("PROMPT", "NEGATIVE_PROMPT"):
        texts = [value] if isinstance(value, (str, bytes)) else value
        return np.array([t if isinstance(t, bytes) else t.encode() for t in texts], object)
    dtype = {"LABEL": np.int64, "SEED": np.int64, "GUIDANCE": np.float32}.get(name, np.int32)
    return np.atleast_1d(np.asarray(value, dtype))


def inputs_of(config: Path):
    """(type, dims, whether it is a column) of each input."""
    found = {}
    for body in re.findall(r"^input \{\n(.*?)^\}", config.read_text(), re.DOTALL | re.MULTILINE):
        name, dtype = re.search(r'name: "(.*)"', body)[1], re.search(r"data_type: (\w+)", body)[1]
        dims = tuple(int(size) for size in re.search(r"dims: \[ (.*) \]", body)[1].split(", "))
        found[name] = (TYPES[dtype], dims, "reshape" in body)
    return found


def parameters_of(model: Path):
    """Parameters of a model, as the server gives them to it."""
    pairs = re.findall(r'key: "(.*)"\n  value \{ string_value: "(.*)" \}', (model / "config.pbtxt").read_text())
    return {key: {"string_value": value} for key, value in pairs}
