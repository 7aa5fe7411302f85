"""What TensorRT's Python bindings say of the members that `dq_deploy.engines.tensorrt.api` names.

`tensorrt_signatures.json` beside this file has it for versions that do not import without their libraries. The bindings
wheels alone suffice to write it: they import against empty libraries, for their documentation strings only. With the
wheel unpacked in a folder::

    echo '' > empty.c
    for name in nvinfer nvinfer_plugin nvonnxparser; do
        gcc -shared -fPIC -Wl,-soname,lib$name.so.11 -o lib$name.so.11 empty.c  # nvinfer needs the create... and get...
    done                                                                       # functions, each returning null
    LD_LIBRARY_PATH=. PYTHONPATH=.:REPOSITORY \\
        python -m tests.engines.tensorrt.binding_signatures tensorrt_bindings FILE.json
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from dq_deploy.engines.tensorrt import api as tensorrt_api

# Protocol -> class of the library
CLASSES = {
    "HostMemory": "IHostMemory",
    "Logger": "ILogger",
    "Tensor": "ITensor",
    "NetworkDefinition": "INetworkDefinition",
    "OptimizationProfile": "IOptimizationProfile",
    "TimingCache": "ITimingCache",
    "ProgressMonitor": "IProgressMonitor",
    "BuilderConfig": "IBuilderConfig",
    "Builder": "Builder",
    "ParserError": "ParserError",
    "OnnxParser": "OnnxParser",
    "EngineInspector": "EngineInspector",
    "ExecutionContext": "IExecutionContext",
    "CudaEngine": "ICudaEngine",
    "Runtime": "Runtime",
}
RTX_CLASSES = {
    "RtxBuilderConfig": "IBuilderConfig",
    "RtxRuntime": "Runtime",
    "RtxRuntimeConfig": "IRuntimeConfig",
    "RtxRuntimeCache": "IRuntimeCache",
}
ENUMS = {
    "Severities": "ILogger.Severity",
    "DataTypes": "DataType",
    "NetworkFlags": "NetworkDefinitionCreationFlag",
    "Verbosities": "ProfilingVerbosity",
    "MemoryPools": "MemoryPoolType",
    "TensorModes": "TensorIOMode",
    "InformationFormats": "LayerInformationFormat",
    "AllocationStrategies": "ExecutionContextAllocationStrategy",
    "EngineStats": "EngineStat",
}
CONSTRUCTORS = ("Builder", "OnnxParser", "Runtime")


def members_of(protocol: str) -> dict[str, list[str] | str]:
    """Members one Protocol adds: `property`, or the parameters of a method."""
    cls = getattr(tensorrt_api, protocol)
    found: dict[str, list[str] | str] = dict.fromkeys(inspect.get_annotations(cls), "property")
    for name, value in vars(cls).items():
        if isinstance(value, property):
            found[name] = "property"
        elif inspect.isfunction(value) and not name.startswith("_"):
            found[name] = list(inspect.signature(value).parameters)[1:]
    return found


def signatures_of(library: ModuleType, *, rtx: bool) -> dict[str, Any]:
    """Of each member the parameters of each overload, or `property`, or None where the library has it not."""
    found: dict[str, Any] = {"version": library.__version__}
    for protocol, name in {**CLASSES, **(RTX_CLASSES if rtx else {})}.items():
        cls = getattr(library, name)
        found[protocol] = {member: _described(getattr(cls, member, None)) for member in members_of(protocol)}
    for protocol, name in ENUMS.items():
        enum: Any = library
        for piece in name.split("."):
            enum = getattr(enum, piece)
        found[protocol] = [member for member in members_of(protocol) if member in enum.__members__]
    found["constructors"] = {name: _described(getattr(library, name).__init__) for name in CONSTRUCTORS}
    found["Library"] = [name for name in members_of("Library") if hasattr(library, name)]
    return found


def _described(member: Any) -> Any:
    if member is None or isinstance(member, property):
        return None if member is None else "property"
    lines = re.findall(r"^(?:\d+\. )?\w+\((.*)\) -> .*$", member.__doc__ or "", re.MULTILINE)
    return [_parameters(line) for line in lines]


def _parameters(line: str) -> list[str]:
    while (flat := re.sub(r"\[[^\[\]]*\]|<[^<>]*>", "", line)) != line:  # types may hold commas
        line = flat
    return [piece.partition(":")[0].strip() for piece in line.split(",")][1:]


if __name__ == "__main__":
    file = Path(sys.argv[2])
    known = json.loads(file.read_text()) if file.exists() else {}
    module = importlib.import_module(sys.argv[1])
    known[module.__version__] = signatures_of(module, rtx="rtx" in sys.argv[1])
    file.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
