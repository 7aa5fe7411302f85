"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dq_deploy.engines.base import Runner, TensorSpec, reason_of
from dq_deploy.engines.first_layer import first_layer
from dq_deploy.engines.options import OnnxRuntimeOptions
from dq_deploy.errors import DqError, FileProblemError, InputError, MissingDependencyError, raise_if_out_of_memory
from dq_deploy.manifest.values import EngineManifest
from dq_deploy.numerics.arrays import Array

EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
"""Setting that says where the data file of a model given as bytes lies."""

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}

_DEFAULT = OnnxRuntimeOptions()


class OnnxRuntimeRunner(Runner):
    """An ONNX file in an ONNX Runtime CPU session, with all graph optimizations or none."""

    engine = "onnxruntime"
    side_by_side = True

    def __init__(
        self,
        model: Path | bytes,
        manifest: EngineManifest | None,
        options: OnnxRuntimeOptions = _DEFAULT,
    ) -> None:
        """Load the model.

        Args:
            model: ONNX file, or its bytes.
            manifest: the exporter's, or None.
            options: how it runs.

        Raises:
            MissingDependencyError: onnxruntime is not installed.
            FileProblemError: ONNX Runtime refuses the file.
        """
        super().__init__(manifest, finite_check=options.finite_check)
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError(
                f"onnxruntime cannot be imported ({error}); install it: pip install onnxruntime"
            ) from error
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4  # what it logs is in its exceptions, too
        if not options.optimize:
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
        if options.optimized_model_path is not None:
            settings.optimized_model_filepath = str(options.optimized_model_path)
        self._model, self._settings, self._library = model, settings, onnxruntime
        source = model if isinstance(model, bytes) else str(model)
        try:
            self._session = onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise_if_out_of_memory(error)
            name = "model" if isinstance(model, bytes) else str(model)
            raise FileProblemError(f"ONNX Runtime cannot load {name}: {reason_of(error)}; export it again") from error
        self._turns.pinned.append(self._session)
        self.inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(_spec(value) for value in self._session.get_outputs())
        self._names = [spec.name for spec in self.outputs]

    @property
    def version(self) -> str:
        """Of onnxruntime."""
        return str(self._library.__version__)

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            values = self._session.run(self._names, dict(feeds))
        except MemoryError:
            raise
        except Exception as error:  # see above
            raise_if_out_of_memory(error)
            raise InputError(f"ONNX Runtime failed: {reason_of(error)}; check the inputs' shapes and values") from error
        return dict(zip(self._names, values, strict=True))

    def _first_layer(self, feeds: Mapping[str, Array]) -> str:
        if isinstance(self._model, bytes):
            return ""
        path = self._model

        def run_with(names: Sequence[str]) -> Mapping[str, Array]:
            import onnx

            proto = onnx.load(str(path), load_external_data=False)
            proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
            settings = self._library.SessionOptions()
            settings.log_severity_level = 4
            settings.graph_optimization_level = self._settings.graph_optimization_level
            settings.intra_op_num_threads = self._settings.intra_op_num_threads
            settings.add_session_config_entry(EXTERNAL_FOLDER, str(path.parent))
            session = self._library.InferenceSession(
                proto.SerializeToString(), settings, providers=["CPUExecutionProvider"]
            )
            return dict(zip(names, session.run(list(names), dict(feeds)), strict=True))

        return first_layer(path, self.manifest, run_with)

    def _free(self) -> None:
        self._session = None
        self._turns.pinned.clear()


def _spec(value: Any) -> TensorSpec:
    if value.type not in _DTYPES:
        raise DqError(f"tensor {value.name} has type {value.type}, expected one of {', '.join(_DTYPES)}")
    shape = tuple(d if isinstance(d, int) else str(d or "?") for d in value.shape)
    return TensorSpec(name=value.name, dtype=np.dtype(_DTYPES[value.type]), shape=shape)
