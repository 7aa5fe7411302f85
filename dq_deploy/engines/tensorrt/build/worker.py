"""Builds one plan in a process of its own: a builder that crashes or eats the memory takes nobody along."""

from __future__ import annotations

import ctypes
import hashlib
import io
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dq_deploy.artifacts import write_bytes_atomic
from dq_deploy.engines.tensorrt.build.messages import BuildAnswer, BuildRequest, Built, ParserError, Phase, Refusal
from dq_deploy.engines.tensorrt.library import tensorrt_library
from dq_deploy.errors import DqError, MissingDependencyError
from dq_deploy.processes import Handler, own_peak_mib, serve

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

TellPhase = Callable[[Phase], None]
_STEP_EVERY_S = 0.1
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


class _Refused(Exception):
    """The build ends here; the refusal goes to the starter."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.kind)
        self.refusal = refusal


def logger_of(library: Library, errors: list[str]) -> Logger:
    """A logger that writes each message to stderr at once, so that a crash loses none, and keeps the errors."""
    serious = [library.ILogger.Severity.INTERNAL_ERROR, library.ILogger.Severity.ERROR]

    base: Any = library.ILogger

    class Log(base):
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


def monitor_of(library: Library, tell: TellPhase) -> ProgressMonitor:
    """A monitor that tells of each phase, and of its steps now and then."""

    base: Any = library.IProgressMonitor

    class Monitor(base):
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
            tell(Phase(phase=phase, done=done, total=self.totals.get(phase, 0)))

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
        raise _Refused(Refusal(kind="no_builder", message=str(error))) from error
    if not parser.parse_from_file(request.onnx) or parser.num_errors:
        found = (parser.get_error(index) for index in range(parser.num_errors))
        errors = tuple(
            ParserError(
                code=str(error.code().name),
                message=error.desc(),
                index=error.node(),
                node=error.node_name(),
                operator=error.node_operator(),
            )
            for error in found
        )
        raise _Refused(Refusal(kind="parser", errors=errors))
    return builder, network


def builder_config(
    library: Library, request: BuildRequest, builder: Builder, network: NetworkDefinition, tell: TellPhase
) -> BuilderConfig:
    """Profile, memory, verbosity, timing cache and architectures."""
    from polygraphy.backend.trt import CreateConfig, Profile

    profile = Profile()
    for name, shapes in request.profile.items():
        profile.add(name, *(tuple(shapes[kind]) for kind in ("min", "opt", "max")))
    inputs = {network.get_input(index).name for index in range(network.num_inputs)}
    if inputs != set(request.profile):
        raise _Refused(Refusal(kind="inputs", found=tuple(sorted(inputs)), expected=tuple(sorted(request.profile))))
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
        progress_monitor=monitor_of(library, tell),
    )(builder, network)
    return config


def set_architectures(library: RtxLibrary, config: RtxBuilderConfig, wanted: Sequence[str]) -> None:
    """Architectures of a TensorRT-RTX plan."""
    config.num_compute_capabilities = len(wanted)
    for index, capability in enumerate(wanted):
        value = getattr(library.ComputeCapability, "SM" + capability.replace(".", ""))
        if not config.set_compute_capability(value, index):
            raise _Refused(Refusal(kind="capability", expected=(capability,)))


def built(request: BuildRequest, tell: TellPhase, errors: list[str]) -> Built:
    """Parse, build and write the plan.

    Args:
        request: what is built.
        tell: gets each phase.
        errors: gets the errors that the library logs.
    """
    tell(Phase(phase="loading the library", done=0, total=0))
    library = tensorrt_library(request.runtime)
    rtx = request.runtime == "tensorrt-rtx"
    logger = logger_of(library, errors)
    capabilities = request.compute_capabilities
    if not rtx:
        gpu = gpu_compute_capability()
        if gpu is None:
            raise _Refused(Refusal(kind="no_builder", message="no driver or no GPU"))
        if capabilities and capabilities != (gpu,):
            raise _Refused(Refusal(kind="capability", expected=capabilities, found=(gpu,)))
        capabilities = (gpu,)
    tell(Phase(phase="parsing", done=0, total=0))
    started = time.monotonic()
    builder, network = parsed_network(library, request, logger)
    config = builder_config(library, request, builder, network, tell)
    if rtx and capabilities:
        set_architectures(cast("RtxLibrary", library), cast("RtxBuilderConfig", config), capabilities)
    parsed = time.monotonic()
    plan: HostMemory | None = builder.build_serialized_network(network, config)
    if plan is None:
        raise _Refused(Refusal(kind="builder"))
    finished = time.monotonic()
    tell(Phase(phase="writing", done=0, total=0))
    with Path(request.plan).open("wb") as stream:
        stream.write(plan)
    if request.timing_cache is not None and (cache := config.get_timing_cache()) is not None:
        write_bytes_atomic(Path(request.timing_cache), bytes(cache.serialize()))
    return Built(
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=plan.nbytes,
        runtime_version=library.__version__,
        compute_capabilities=capabilities,
        parse_seconds=round(parsed - started, 3),
        build_seconds=round(finished - parsed, 3),
        network_layers=network.num_layers,
        peak_mib=own_peak_mib(),
    )


def answer(request: BuildRequest, tell: TellPhase) -> BuildAnswer:
    """Build and tell how it went."""
    # polygraphy reads both when it is imported
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = str(int(request.runtime == "tensorrt-rtx"))
    os.environ["POLYGRAPHY_AUTOINSTALL_DEPS"] = "0"
    errors: list[str] = []
    try:
        return BuildAnswer(built=built(request, tell, errors))
    except _Refused as refused:
        return BuildAnswer(refusal=replace(refused.refusal, log=tuple(errors[-5:])))
    except (MemoryError, DqError, OSError):
        raise
    except ImportError as error:
        raise MissingDependencyError(f"{error.name or error} cannot be imported ({error})") from error
    except Exception as error:  # polygraphy and the bindings raise what they like
        traceback.print_exc()
        reason = " ".join(str(error).split())
        return BuildAnswer(refusal=Refusal(kind="builder", log=(*errors[-4:], f"{type(error).__name__}: {reason}")))


if __name__ == "__main__":
    serve(Handler(BuildRequest, answer), expendable=True)
