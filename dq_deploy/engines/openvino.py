"""OpenVINO on the CPU, held to float32."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dq_deploy.artifacts import write_text_atomic
from dq_deploy.engines.base import Runner, TensorSpec, reason_of
from dq_deploy.engines.first_layer import first_layer
from dq_deploy.engines.options import OpenVinoOptions
from dq_deploy.errors import DqError, FileProblemError, InputError, MissingDependencyError, raise_if_out_of_memory
from dq_deploy.manifest.values import EngineManifest
from dq_deploy.numerics.arrays import Array

RUNTIME_GRAPH_FORMAT = "dq_deploy.openvino_runtime_graph"

_DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "f64": "float64",
    "i64": "int64",
    "i32": "int32",
    "u8": "uint8",
    "i8": "int8",
    "boolean": "bool",
}

_DEFAULT = OpenVinoOptions()


class OpenVinoRunner(Runner):
    """An ONNX file compiled for OpenVINO's CPU plugin, one stream.

    The float type is forced to float32: left alone the plugin takes bfloat16 where the processor has it.
    """

    engine = "openvino"

    def __init__(
        self,
        model: Path | bytes,
        manifest: EngineManifest | None,
        options: OpenVinoOptions = _DEFAULT,
    ) -> None:
        """Compile the model.

        Args:
            model: ONNX file, or its bytes.
            manifest: the exporter's, or None.
            options: how it runs; to `optimized_model_path` what `runtime_graph` tells is written, as JSON.

        Raises:
            MissingDependencyError: openvino is not installed.
            FileProblemError: OpenVINO refuses the file.
        """
        super().__init__(manifest, finite_check=options.finite_check)
        try:
            import openvino
        except ImportError as error:
            raise MissingDependencyError(
                f"openvino cannot be imported ({error}); install it: pip install 'dq-deploy[openvino]'"
            ) from error
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        if options.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = options.threads
        self._version = str(openvino.__version__)
        core = openvino.Core()
        self._model, self._core, self._settings = model, core, settings
        try:
            graph = core.read_model(model if isinstance(model, bytes) else str(model))
            if any(size.is_dynamic for port in graph.inputs for size in list(port.get_partial_shape())[1:]):
                # OpenVINO 2026.4 keeps kernels over changes of shape: behind a text of 2 tokens one of 16 is wrong
                settings["CPU_RUNTIME_CACHE_CAPACITY"] = "0"
            self._compiled = core.compile_model(graph, "CPU", settings)
            self._request = self._compiled.create_infer_request()
        except Exception as error:  # openvino raises plain RuntimeError
            raise_if_out_of_memory(error)
            name = "model" if isinstance(model, bytes) else str(model)
            raise FileProblemError(f"OpenVINO cannot load {name}: {_reason(error)}; export it again") from error
        self._turns.pinned += [core, graph, self._compiled, self._request]
        precision = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if precision != "f32":
            raise DqError(f"OpenVINO computes in {precision}, expected f32 as asked; use another engine")
        inputs, outputs = _onnx_names(model)
        specs = [_spec(port, [*inputs]) for port in self._compiled.inputs]
        self.inputs = tuple(_named_sizes(spec, manifest, inputs[spec.name]) for spec in specs)
        if len(outputs) != len(self._compiled.outputs):
            raise DqError(f"OpenVINO has {len(self._compiled.outputs)} outputs, expected {len(outputs)}: {outputs}")
        self.outputs = tuple(_spec(port, [name]) for port, name in zip(self._compiled.outputs, outputs, strict=True))
        if options.optimized_model_path is not None:
            self._settle_kernels()
            write_text_atomic(options.optimized_model_path, json.dumps(self.runtime_graph(), indent=1) + "\n")

    @property
    def version(self) -> str:
        """Of openvino."""
        return self._version

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            values = self._request.infer({i: feeds[spec.name] for i, spec in enumerate(self.inputs)})
        except MemoryError:
            raise
        except Exception as error:  # see above
            raise_if_out_of_memory(error)
            raise InputError(f"OpenVINO failed: {_reason(error)}; check the inputs' shapes and values") from error
        # the arrays belong to the request, the next run overwrites them
        return {spec.name: np.array(values[i]) for i, spec in enumerate(self.outputs)}

    def _first_layer(self, feeds: Mapping[str, Array]) -> str:
        if isinstance(self._model, bytes):
            return ""

        def run_with(names: Sequence[str]) -> Mapping[str, Array]:
            graph = self._core.read_model(str(self._model))
            graph.add_outputs(list(names))
            request = self._core.compile_model(graph, "CPU", self._settings).create_infer_request()
            values = request.infer({i: feeds[spec.name] for i, spec in enumerate(self.inputs)})
            return {name: np.array(values[len(self.outputs) + i]) for i, name in enumerate(names)}

        return first_layer(self._model, self.manifest, run_with)

    def _settle_kernels(self) -> None:
        """Run once on ones: where a shape is free OpenVINO chooses some kernels at the first run."""
        free = {spec.name: [1 if isinstance(size, str) else size for size in spec.shape] for spec in self.inputs}
        # a piece of a model may not run on such shapes; its kernels are then those of the first real run
        with contextlib.suppress(InputError):
            self._run({spec.name: np.ones(free[spec.name], spec.dtype) for spec in self.inputs})

    def runtime_graph(self) -> dict[str, Any]:
        """The kernels this engine really runs: JSON values.

        Returns:
            `format`, `version` and `nodes`; each node has its `name`, `type` (as Convolution), `kernel` (as
            brgconv_avx512_I8), `originals` (names of the ONNX nodes it stands for) and the element types of its
            `operands` and `results`, as numpy calls them where it knows them.
        """
        nodes = []
        with self.using():
            operations = self._compiled.get_runtime_model().get_ordered_ops()
        for op in operations:
            info = op.get_rt_info()
            nodes.append(
                {
                    "name": op.get_friendly_name(),
                    "type": _text(info, "layerType"),
                    "kernel": _text(info, "primitiveType"),
                    "originals": [name for name in _text(info, "originalLayersNames").split(",") if name],
                    "operands": [_dtype_name(port.get_element_type()) for port in op.inputs()],
                    "results": [_dtype_name(port.get_element_type()) for port in op.outputs()],
                }
            )
        return {"format": RUNTIME_GRAPH_FORMAT, "version": 1, "nodes": nodes}

    def _free(self) -> None:
        self._request = self._compiled = None
        self._turns.pinned.clear()


def _text(info: Mapping[str, Any], key: str) -> str:
    return str(info[key].astype(str)) if key in info else ""


def _dtype_name(element: Any) -> str:
    name = str(element.get_type_name())
    return _DTYPES.get(name, name)


def _reason(error: Exception) -> str:
    """The first line of OpenVINO's message that says what is wrong and not where it was noticed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if not line.startswith(("Exception from", "FrontEnd API"))), "no reason given")
    return reason_of(RuntimeError(told))


def _onnx_names(model: Path | bytes) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The graph's inputs with the names of their sizes, empty where one has none, and the names of its outputs.

    OpenVINO keeps the order of the outputs but may give one two names, and forgets those of sizes.
    """
    import onnx

    if isinstance(model, bytes):
        proto = onnx.load_model_from_string(model)
    else:
        proto = onnx.load(str(model), load_external_data=False)
    inputs = {
        value.name: tuple(size.dim_param for size in value.type.tensor_type.shape.dim) for value in proto.graph.input
    }
    return inputs, [value.name for value in proto.graph.output]


def _named_sizes(spec: TensorSpec, manifest: EngineManifest | None, in_file: Sequence[str]) -> TensorSpec:
    """The input with the names that its manifest, or else the file, has for sizes that vary."""
    tensors = () if manifest is None else manifest.inputs
    said = next((tensor.shape for tensor in tensors if tensor.name == spec.name), in_file)
    if len(said) != len(spec.shape):
        return spec
    # the first axis is not always the batch: samples may share a tensor, as FLUX's positions
    sizes = tuple(
        str(name or size) if isinstance(size, str) else size for size, name in zip(spec.shape, said, strict=True)
    )
    return replace(spec, shape=sizes)


def _spec(port: Any, names: list[str]) -> TensorSpec:
    kind = port.get_element_type().get_type_name()
    known = port.get_names()
    name = next((name for name in names if name in known), None)
    if name is None or kind not in _DTYPES:
        raise DqError(f"tensor {sorted(known)} of type {kind} is none of {names}; expected one of {', '.join(_DTYPES)}")
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return TensorSpec(name=name, dtype=np.dtype(_DTYPES[kind]), shape=())
    sizes = tuple(
        "B" if i == 0 and d.is_dynamic else "?" if d.is_dynamic else d.get_length() for i, d in enumerate(shape)
    )
    return TensorSpec(name=name, dtype=np.dtype(_DTYPES[kind]), shape=sizes)
