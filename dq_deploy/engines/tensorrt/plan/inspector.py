"""What TensorRT's engine inspector says of an engine: its layers, their tensors' types and the ONNX nodes they are for.

Both dialects of its JSON are read: TensorRT 10 (`Bindings`, tensors with `Format/Datatype`) and TensorRT 11
(`I/O Tensors`, tensors with `Format` and `DataType`). An engine must have been built with detailed profiling verbosity;
with less, layers are names only and nothing is known of their types. Written after the published schema and samples;
never tried on an engine of this project, for lack of the library and a GPU.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from dq_deploy.artifacts import sha256_of_bytes, sha256_of_file, with_files_beside, write_text_atomic
from dq_deploy.engines.tensorrt.plan.products import Convolution, Kernel, PlanText, Product
from dq_deploy.engines.tensorrt.plan.symbols import Size, product_of
from dq_deploy.engines.tensorrt.plan.text import nodes_listed
from dq_deploy.errors import FileProblemError, MissingDependencyError

LAYERS_SUFFIX = ".layers.json"
PLAN_KEY = "plan_sha256"
"""Added to the inspector's object when it is stored, so that it is not taken for another plan's."""
OWN_KEY = "layers_sha256"
"""Added too: of the object without this entry, as JSON with sorted keys; files of earlier versions have none."""

MAX_BYTES = 256 << 20

_CONVOLUTIONS = ("convolution", "caskconvolution", "cudadepthwiseconvolution", "conv", "correlation")
_PRODUCTS = ("gemm", "matrixmultiply", "caskgemmmatrixmultiply", "caskgemmconvolution", "fully_connected", "fc")
_TYPE = "(tf32|bf16|f16|f32|i32|i8|s8|i4)"
_TACTIC_TYPES = re.compile(f"(?<![a-z0-9]){_TYPE}{_TYPE}_{_TYPE}{_TYPE}_{_TYPE}(?![a-z0-9])")
_TYPES = (
    ("int8", re.compile(r"\bint8\b|\bi8\b")),
    ("int4", re.compile(r"\bint4\b|\bi4\b")),
    ("fp8", re.compile(r"\bfp8\b|\bf8\b")),
    ("half", re.compile(r"\bfp16\b|\bhalf\b|\bf16\b")),
    ("bf16", re.compile(r"\bbf16\b|\bbfloat16\b")),
    ("float", re.compile(r"\bfp32\b|\bfloat\b|\bf32\b|\btf32\b")),
    ("int32", re.compile(r"\bint32\b")),
    ("int64", re.compile(r"\bint64\b")),
    ("bool", re.compile(r"\bbool\b")),
)
_SHORT = {"i8": "int8", "s8": "int8", "i4": "int4", "f16": "half", "bf16": "bf16", "f32": "float", "tf32": "float"}


def layers_path(plan_path: Path) -> Path:
    """`unet.plan` -> `unet.plan.layers.json`, where the inspector's JSON is kept."""
    return Path(f"{with_files_beside(plan_path)}{LAYERS_SUFFIX}")


def read_inspector(plan_path: str | Path) -> PlanText:
    """The inspector's account of an engine: from the JSON `store_layers` left beside it, else by loading the engine.

    Args:
        plan_path: engine of full TensorRT.

    Returns:
        What it says, or the problem: JSON of another plan, no JSON and no library or GPU to load the engine with.
    """
    path = Path(plan_path)
    side = layers_path(path)
    if not side.is_file():
        try:
            return inspector_from_text(inspector_json_of_engine(path))
        except (MissingDependencyError, FileProblemError) as error:
            return PlanText(version="", problem=f"{side.name} is not there and the engine cannot be loaded: {error}")
    try:
        if side.stat().st_size > MAX_BYTES:
            return PlanText(version="", problem=f"{side.name} has more than {MAX_BYTES >> 20} MiB")
        text = side.read_text(encoding="utf-8")
        told = inspector_from_text(text)
        value = {} if told.problem else json.loads(text)
        if not told.problem and value.get(PLAN_KEY) != sha256_of_file(path):
            return PlanText(version="", problem=f"{side.name} is of another plan: its {PLAN_KEY} is not this plan's")
        if value.get(OWN_KEY) not in (None, _own_sha256(value)):
            return PlanText(version="", problem=f"{side.name} is not what was written: its {OWN_KEY} is another")
        return told
    except (OSError, UnicodeDecodeError) as error:
        return PlanText(version="", problem=f"{side.name} cannot be read: {error}")


def store_layers(plan_path: Path) -> None:
    """Load an engine of full TensorRT and keep its inspector's JSON beside it, for machines without its GPU.

    Raises:
        MissingDependencyError: the library is not installed.
        FileProblemError: the engine cannot be loaded, its inspector gave no JSON object, or there is no place.
    """
    try:
        value = json.loads(inspector_json_of_engine(plan_path))
        value[PLAN_KEY] = sha256_of_file(plan_path)
        value[OWN_KEY] = _own_sha256(value)
    except (ValueError, TypeError) as error:
        raise FileProblemError(f"the inspector of {plan_path} gave no JSON object: {error}") from error
    write_text_atomic(layers_path(plan_path), json.dumps(value, indent=1) + "\n")


def _own_sha256(value: Mapping[str, Any]) -> str:
    rest = {key: entry for key, entry in value.items() if key != OWN_KEY}
    return sha256_of_bytes(json.dumps(rest, sort_keys=True).encode("utf-8"))


def inspector_json_of_engine(plan_path: Path) -> str:
    """Load an engine of full TensorRT and ask its inspector; needs the GPU it was built for.

    Raises:
        MissingDependencyError: the library is not installed.
        FileProblemError: the library refuses the engine, or there is no GPU for it.
    """
    from dq_deploy.engines.tensorrt.library import tensorrt_library

    library = cast("Any", tensorrt_library("tensorrt"))
    try:
        runtime = library.Runtime(library.Logger(library.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(plan_path.read_bytes())
        if engine is None:
            raise FileProblemError(f"TensorRT {library.__version__} refuses {plan_path}: another version or GPU")
        return str(engine.create_engine_inspector().get_engine_information(library.LayerInformationFormat.JSON))
    except (RuntimeError, OSError, TypeError) as error:
        raise FileProblemError(f"TensorRT cannot load {plan_path}: {' '.join(str(error).split())}") from error


def inspector_from_text(text: str) -> PlanText:
    """Products and kernels from the inspector's JSON, of either dialect.

    Args:
        text: what `get_engine_information(LayerInformationFormat.JSON)` or `trtexec --exportLayerInfo` gave.
    """
    try:
        value = json.loads(text)
        layers = value["Layers"]
        dialect = dialect_of(value)
        if not isinstance(layers, list) or not dialect:
            return PlanText(version="", problem="the inspector's JSON is of no dialect that is known here")
        if any(isinstance(layer, str) for layer in layers):
            problem = "the inspector tells names only; build the engine with detailed profiling verbosity"
            return PlanText(version="", problem=problem)
        products = tuple(_product(layer) for layer in layers if _multiplies(layer))
        kernels = tuple(_kernel(layer) for layer in layers if not _multiplies(layer))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return PlanText(version="", problem=f"the inspector's JSON cannot be read ({type(error).__name__}: {error})")
    return PlanText(version="", problem="", products=products, kernels=kernels)


def dialect_of(value: Mapping[str, Any]) -> str:
    """`10` or `11`, empty where the JSON has the marks of neither or of both."""
    ten, eleven = isinstance(value.get("Bindings"), list), isinstance(value.get("I/O Tensors"), list)
    return "" if ten == eleven else "10" if ten else "11"


def type_of(tensor: Mapping[str, Any]) -> str:
    """Element type of a tensor as a plan's text calls it: `int8`, `int4`, `half`, `float`; else `unknown`."""
    words = " ".join(str(tensor.get(key, "")) for key in ("DataType", "Datatype", "Format/Datatype")).lower()
    if not words.strip():
        words = str(tensor.get("Format", "")).lower()
    found = [name for name, pattern in _TYPES if pattern.search(words)]
    return found[0] if len(found) == 1 else "unknown"


def _multiplies(layer: Mapping[str, Any]) -> bool:
    """Whether a layer is a matrix product or a convolution, or a fusion around one."""
    kind = str(layer["LayerType"]).lower()
    if kind in (*_CONVOLUTIONS, *_PRODUCTS) or str(layer.get("ParameterType", "")) in ("Convolution", "MatrixMultiply"):
        return True
    attention = "mha" in str(layer.get("TacticName", "")) or "mha" in str(layer.get("Name", ""))
    return kind in ("fusion", "myelin", "kgen") and not attention and bool(_tactic(layer))


def _tactic(layer: Mapping[str, Any]) -> tuple[str, str] | None:
    """Operand types in a tactic's name: the first and third of `i8f32_i8i32_f32`; None where it has no such word.

    The five are: first operand, result, second operand, accumulator, epilogue.
    """
    match = _TACTIC_TYPES.search(str(layer.get("TacticName", "")))
    if match is None:
        return None
    return _SHORT.get(match[1], "unknown"), _SHORT.get(match[3], "unknown")


def _product(layer: Mapping[str, Any]) -> Product:
    nodes = nodes_listed(str(layer.get("Metadata", "")))
    sizes = _convolution_sizes(layer) if "Kernel" in layer else _gemm_sizes(layer)
    convolution, m, n, k, batch = sizes
    return Product(
        kind="gemm" if convolution is None else "conv",
        nodes=nodes,
        listed=nodes,
        operands=_operands(layer),
        m=m,
        n=n,
        k=k,
        batch=batch,
        convolution=convolution,
    )


def _operands(layer: Mapping[str, Any]) -> tuple[str, str]:
    """Types of codes and weights; where the tactic's name says otherwise, unknown."""
    inputs = [type_of(tensor) for tensor in layer.get("Inputs") or ()]
    weights = layer.get("Weights")
    if isinstance(weights, Mapping):
        second = type_of({"DataType": weights.get("Type", "")})
    else:
        second = inputs[1] if len(inputs) > 1 else "unknown"
    told = (inputs[0] if inputs else "unknown", second)
    tactic = _tactic(layer)
    if tactic is None or "unknown" in tactic:
        return told
    if "unknown" in told and told[0] in ("unknown", tactic[0]) and told[1] in ("unknown", tactic[1]):
        return tactic
    return told if told == tactic else ("unknown", "unknown")


def _dims(tensor: Mapping[str, Any]) -> tuple[Size, ...]:
    return tuple(Size.of(int(d)) if int(d) >= 0 else Size(1, ("dynamic",)) for d in tensor["Dimensions"])


_UNTOLD = (Size.unknown(),) * 4


def _gemm_sizes(layer: Mapping[str, Any]) -> tuple[None, Size, Size, Size, Size]:
    inputs, outputs = layer.get("Inputs") or (), layer.get("Outputs") or ()
    if not inputs or not outputs:
        return (None, *_UNTOLD)
    x, y = _dims(inputs[0]), _dims(outputs[0])
    if len(x) < 2 or len(y) < 2:
        return (None, *_UNTOLD)
    second = _dims(inputs[1]) if len(inputs) > 1 else ()
    shared = len(second) > 2 and product_of(second[:-2]) != Size.of(1)
    if shared:
        return (None, x[-2], y[-1], x[-1], product_of(x[:-2]))
    return (None, product_of(x[:-1]), y[-1], x[-1], Size.of(1))


def _convolution_sizes(layer: Mapping[str, Any]) -> tuple[Convolution | None, Size, Size, Size, Size]:
    x, y = _dims(layer["Inputs"][0]), _dims(layer["Outputs"][0])
    kernel = tuple(int(v) for v in layer["Kernel"])
    groups, n, c = int(layer.get("Groups", 1)), int(layer["OutMaps"]), x[1].number
    if c is None or len(x) != len(kernel) + 2 or len(y) != len(x):
        return (None, *_UNTOLD)
    geometry = Convolution(
        n=n,
        c=c,
        kernel=kernel,
        stride=tuple(int(v) for v in layer["Stride"]),
        padding=(*(int(v) for v in layer["PrePadding"]), *(int(v) for v in layer["PostPadding"])),
        dilation=tuple(int(v) for v in layer["Dilation"]),
        groups=groups,
        spatial=x[2:],
        spatial_out=y[2:],
    )
    return geometry, x[0], Size.of(n), Size.of(c // max(groups, 1)), Size.of(1)


def _kernel(layer: Mapping[str, Any]) -> Kernel:
    return Kernel(
        name=str(layer["Name"]),
        nodes=nodes_listed(str(layer.get("Metadata", ""))),
        inputs=tuple(type_of(tensor) for tensor in layer.get("Inputs") or ()),
        outputs=tuple(type_of(tensor) for tensor in layer.get("Outputs") or ()),
    )
