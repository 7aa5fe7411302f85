"""Builds one plan in a process of its own: a builder that crashes or eats the memory takes nobody along.

The process gets one JSON object as its argument (`BuildRequest`) and writes JSON lines on stdout::

    {"event": "phase", "phase": "Optimizing graph", "done": 3, "total": 30}
    {"event": "done", "plan_sha256": "...", "plan_bytes": 294780, "peak_mib": 412.0, ...}
    {"event": "error", "kind": "parser", "errors": [...]}

Everything the library says goes to stderr, one message a line. The process dies with the one that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.artifacts import write_bytes_atomic
from dq_deploy.processes import peak_mib
from dq_deploy.engines.tensorrt.library import tensorrt_library
from dq_deploy.errors import DqError

if TYPE_CHECKING:
    from dq_deploy.engines.tensorrt.api import (
        Builder,
        BuilderConfig,
        HostMemory,
        Library,
        Logger,
        NetworkDefinition,
        OnnxParser,
        ProgressMonitor,
        RtxBuilderConfig,
        RtxLibrary,
    )

Emit = Callable[[dict[str, Any]], None]
_PR_SET_PDEATHSIG = 1
_STEP_EVERY_S = 0.1
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What the process builds.

    Attributes:
        runtime: `tensorrt` or `tensorrt-rtx`.
        onnx: file to parse; its external data lies beside it.
        plan: file to write, a temporary name that the starter renames.
        compute_capabilities: as `8.9`; none is the library's default. For TensorRT what the GPU must be.
        profile: `min`, `opt` and `max` shape of each input.
        timing_cache: file to read and update, or None.
        workspace_mib: limit of the workspace pool, or None.
        parent: process id of the starter.
    """

    runtime: str
    onnx: str
    plan: str
    compute_capabilities: list[str]
    profile: dict[str, dict[str, list[int]]]
    timing_cache: str | None
    workspace_mib: int | None
    parent: int


class _Refused(Exception):
    """The build ends here; the values go to the starter as the error event."""

    def __init__(self, kind: str, **values: Any) -> None:
        super().__init__(kind)
        self.values = {"kind": kind, **values}


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its starter ends, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)
    # where memory ends, this process goes, not its starter
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def logger_of(library: Library, errors: list[str]) -> Logger:
    """A logger that writes each message to stderr at once, so that a crash loses none, and keeps the errors."""
    serious = [library.ILogger.Severity.INTERNAL_ERROR, library.ILogger.Severity.ERROR]

    class Log(library.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            line = " ".join(str(msg).split())
            if severity in serious:
                errors.append(line)
                line = f"error: {line}"
            os.write(2, (line + "\n").encode())

    logger: Logger = Log()
    return logger


def monitor_of(library: Library, emit: Emit) -> ProgressMonitor:
    """A monitor that tells of each phase, and of its steps now and then."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}
            self.told = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if time.monotonic() - self.told > _STEP_EVERY_S:
                self._tell(phase_name, step + 1)
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.totals.pop(phase_name, None)

        def _tell(self, phase: str, done: int) -> None:
            self.told = time.monotonic()
            emit({"event": "phase", "phase": phase, "done": done, "total": self.totals.get(phase, 0)})

    monitor: ProgressMonitor = Monitor()
    return monitor


def gpu_compute_capability() -> str | None:
    """Compute capability of the first GPU this process may use, as `9.0`; None without a driver or a GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    codes = (
        cuda.cuInit(0),
        cuda.cuDeviceGet(ctypes.byref(device), 0),
        cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device),
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device),
    )
    return None if any(codes) else f"{major.value}.{minor.value}"


def parsed_network(library: Library, request: BuildRequest, logger: Logger) -> tuple[Builder, NetworkDefinition]:
    """The network of the ONNX file, strongly typed."""
    from polygraphy.backend.trt import loader
    from polygraphy.backend.trt import util as polygraphy_trt

    polygraphy_trt.TRT_LOGGER = logger  # its own prints to stdout, and late
    try:
        builder: Builder
        network: NetworkDefinition
        parser: OnnxParser
        builder, network, parser = loader.BaseNetworkFromOnnx(strongly_typed=True)()
    except TypeError as error:  # what the bindings raise where the library gives no builder
        raise _Refused("no_builder", message=str(error)) from error
    if not parser.parse_from_file(request.onnx) or parser.num_errors:
        found = (parser.get_error(index) for index in range(parser.num_errors))
        errors = [
            {
                "code": str(error.code().name),
                "message": error.desc(),
                "index": error.node(),
                "node": error.node_name(),
                "operator": error.node_operator(),
            }
            for error in found
        ]
        raise _Refused("parser", errors=errors)
    return builder, network


def builder_config(
    library: Library, request: BuildRequest, builder: Builder, network: NetworkDefinition, emit: Emit
) -> BuilderConfig:
    """Profile, memory, verbosity, timing cache and architectures."""
    from polygraphy.backend.trt import CreateConfig, Profile

    profile = Profile()
    for name, shapes in request.profile.items():
        profile.add(name, *(tuple(shapes[kind]) for kind in ("min", "opt", "max")))
    inputs = {network.get_input(index).name for index in range(network.num_inputs)}
    if inputs != set(request.profile):
        raise _Refused("inputs", found=sorted(inputs), expected=sorted(request.profile))
    limits = None
    if request.workspace_mib is not None:
        limits = {library.MemoryPoolType.WORKSPACE: request.workspace_mib << 20}
    cache = None
    if request.timing_cache is not None and Path(request.timing_cache).is_file():
        cache = io.BytesIO(Path(request.timing_cache).read_bytes())
    config: BuilderConfig = CreateConfig(
        profiles=[profile],
        memory_pool_limits=limits,
        profiling_verbosity=library.ProfilingVerbosity.DETAILED,
        load_timing_cache=cache,
        progress_monitor=monitor_of(library, emit),
    )(builder, network)
    return config


def set_architectures(library: RtxLibrary, config: RtxBuilderConfig, wanted: list[str]) -> None:
    """Architectures of a TensorRT-RTX plan."""
    config.num_compute_capabilities = len(wanted)
    for index, capability in enumerate(wanted):
        value = getattr(library.ComputeCapability, "SM" + capability.replace(".", ""))
        if not config.set_compute_capability(value, index):
            raise _Refused("capability", wanted=capability, found=None)


def built(request: BuildRequest, emit: Emit, errors: list[str]) -> dict[str, Any]:
    """Parse, build and write the plan; the values of the last event."""
    emit({"event": "phase", "phase": "loading the library", "done": 0, "total": 0})
    library = tensorrt_library(request.runtime)
    rtx = request.runtime == "tensorrt-rtx"
    logger = logger_of(library, errors)
    capabilities = request.compute_capabilities
    if not rtx:
        gpu = gpu_compute_capability()
        if gpu is None:
            raise _Refused("no_builder", message="no driver or no GPU")
        if capabilities and capabilities != [gpu]:
            raise _Refused("capability", wanted=", ".join(capabilities), found=gpu)
        capabilities = [gpu]
    emit({"event": "phase", "phase": "parsing", "done": 0, "total": 0})
    started = time.monotonic()
    builder, network = parsed_network(library, request, logger)
    config = builder_config(library, request, builder, network, emit)
    if rtx and capabilities:
        set_architectures(library, config, capabilities)  # type: ignore[arg-type] # the RTX library has more
    parsed = time.monotonic()
    plan: HostMemory | None = builder.build_serialized_network(network, config)
    if plan is None:
        raise _Refused("builder", errors=errors[-5:])
    finished = time.monotonic()
    emit({"event": "phase", "phase": "writing", "done": 0, "total": 0})
    with Path(request.plan).open("wb") as stream:
        stream.write(plan)
    if request.timing_cache is not None and (cache := config.get_timing_cache()) is not None:
        write_bytes_atomic(Path(request.timing_cache), bytes(cache.serialize()))
    return {
        "event": "done",
        "plan_sha256": hashlib.sha256(plan).hexdigest(),
        "plan_bytes": plan.nbytes,
        "runtime_version": library.__version__,
        "compute_capabilities": capabilities,
        "parse_seconds": round(parsed - started, 3),
        "build_seconds": round(finished - parsed, 3),
        "network_layers": network.num_layers,
        "peak_mib": peak_mib(),
    }


def answer(request: BuildRequest, emit: Emit) -> int:
    """Build and tell how it went; the exit code."""
    errors: list[str] = []
    try:
        emit(built(request, emit, errors))
        return 0
    except _Refused as refused:
        values = {"log": errors[-5:], **refused.values}
    except MemoryError:
        values = {"kind": "memory"}
    except DqError as error:
        values = {"kind": "dependency", "message": str(error)}
    except ImportError as error:
        values = {"kind": "dependency", "message": f"{error.name or error} cannot be imported ({error})"}
    except OSError as error:
        values = {"kind": "write", "errno": error.errno, "message": error.strerror or str(error)}
    except Exception as error:  # polygraphy and the bindings raise what they like
        traceback.print_exc()
        reason = " ".join(str(error).split())
        values = {"kind": "builder", "log": [*errors[-4:], f"{type(error).__name__}: {reason}"]}
    emit({"event": "error", "peak_mib": peak_mib(), **values})
    return 1


def main() -> None:
    """Entry of the process."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not get between the events

    def emit(event: dict[str, Any]) -> None:
        channel.write(json.dumps(event) + "\n")
        channel.flush()

    request = BuildRequest(**json.loads(sys.argv[1]))
    die_with(request.parent)
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = str(int(request.runtime == "tensorrt-rtx"))
    os.environ["POLYGRAPHY_AUTOINSTALL_DEPS"] = "0"
    sys.stdout = sys.stderr
    code = answer(request, emit)
    # the library's destructors have nothing left to do and can only fail
    channel.close()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
