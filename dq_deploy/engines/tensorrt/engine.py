"""A deserialized plan and its execution contexts: what the runner needs of `tensorrt` and `tensorrt_rtx`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dq_deploy.artifacts import atomic_path
from dq_deploy.engines.base import TensorSpec
from dq_deploy.engines.capabilities import PlanMemory
from dq_deploy.engines.cuda.arrays import dtype_of
from dq_deploy.engines.cuda.interface import DeviceMemoryError, SharedWorkspace
from dq_deploy.engines.tensorrt.library import tensorrt_library
from dq_deploy.engines.tensorrt.plan.checks import (
    NAMES,
    check_compute_capability,
    check_runtime_version,
    check_size,
    profiles_of,
    validity_text,
)
from dq_deploy.errors import DqError, FileProblemError, InputError, MissingDependencyError
from dq_deploy.manifest.values import PlanManifest

if TYPE_CHECKING:
    from dq_deploy.engines.cuda.interface import CudaBackend, CudaStream
    from dq_deploy.engines.tensorrt.api import (
        CudaEngine,
        ExecutionContext,
        Library,
        RtxCudaEngine,
        RtxLibrary,
        RtxRuntimeCache,
        RtxRuntimeConfig,
    )

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
KEPT_MESSAGES = 20
CACHE_SUFFIX = ".kernels"
"""Behind a plan's name: kernels that TensorRT-RTX compiled for shapes, on this GPU."""


def reason_of(messages: Sequence[str], default: str) -> str:
    """The library's own reason in one line: of its last errors the first, which names the cause."""
    return " ".join(messages[0].split()) if messages else default


def error_of(messages: Sequence[str], what: str, plan: Path) -> DqError:
    """The error for a call of the library that failed, by what its log says.

    Args:
        messages: errors it logged during the call.
        what: the call, as `load` or `run`.
        plan: for the message.
    """
    text = " ".join(messages).lower()
    reason = reason_of(messages, "it gives no reason")
    if "out of memory" in text or "outofmemory" in text or "cudaerrormemoryallocation" in text:
        return DeviceMemoryError(
            f"not enough GPU memory to {what} {plan}: {reason:.240}; use a smaller batch or size, end other programs "
            "on the GPU, or share the workspace between engines"
        )
    if "cudaerror 35" in text or "driver version is insufficient" in text:
        return MissingDependencyError(
            f"the NVIDIA driver is missing or too old to {what} {plan}: {reason:.240}; install or update it"
        )
    return FileProblemError(f"cannot {what} plan {plan}: {reason:.240}; build it again with dq-build")


class PlanContext:
    """One execution context of a plan: shapes, addresses, and activation memory that it does not own.

    Attributes:
        activation_bytes: bytes of that memory for the shapes that are set, 0 before.
    """

    def __init__(self, engine: PlanEngine, context: ExecutionContext, config: RtxRuntimeConfig | None = None) -> None:
        """Wrap one.

        Args:
            engine: the plan it belongs to.
            context: made with user-managed memory.
            config: what it was made with, kept as long.
        """
        self._engine = engine
        self._config = config
        self._context: ExecutionContext = context
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._memory: tuple[int, int] | None = None
        self.activation_bytes = 0

    def bind(self, shapes: Mapping[str, tuple[int, ...]], profile: int, stream: CudaStream) -> None:
        """Set the shapes of the inputs.

        Args:
            shapes: by input name, within the profile.
            profile: its index.
            stream: on which a switch of the profile is enqueued; it is waited for.

        Raises:
            InputError: the engine refuses a shape.
        """
        if dict(shapes) == self._shapes:
            return
        self._shapes = {}
        if self._context.active_optimization_profile != profile:
            done = self._context.set_optimization_profile_async(profile, stream.handle)
            stream.synchronize()
            if not done:
                raise self._engine.failure("switch the profile of")
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                reason = reason_of(self._engine.take_messages(), "the engine gives no reason")
                raise InputError(f"input {name} has shape {shape}, which the engine refuses: {reason:.240}")
        if missing := self._context.infer_shapes():
            raise InputError(f"inputs {', '.join(missing)} have no shape yet, expected one for every input")
        # of these shapes; the engine's own number is that of its largest profile
        self.activation_bytes = int(self._context.update_device_memory_size_for_shapes())
        self._shapes = dict(shapes)

    def output_shape(self, name: str) -> tuple[int, ...]:
        """Shape of an output for the shapes that are set."""
        return tuple(int(size) for size in self._context.get_tensor_shape(name))

    def use(self, workspace: SharedWorkspace) -> None:
        """Take the activation memory from a workspace that holds enough."""
        memory = (workspace.pointer, workspace.nbytes)
        if memory != self._memory and memory[0]:
            self._context.set_device_memory(*memory)
            self._memory = memory

    def can_be_captured(self, handle: int) -> bool:
        """Whether a run on this stream can be captured; true where the library does not say."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(handle))

    def enqueue(self, addresses: Mapping[str, int], handle: int) -> None:
        """Enqueue one run.

        Args:
            addresses: device pointer of every input and output.
            handle: of the stream.

        Raises:
            DqError: the engine refuses.
        """
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise self._engine.failure(f"give tensor {name} to")
        if not self._context.execute_async_v3(handle):
            raise self._engine.failure("run")


class PlanEngine:
    """A plan in GPU memory.

    Attributes:
        plan: its file.
        manifest: what was built.
        inputs: in the manifest's order.
        outputs: likewise.
        profiles: optimization profiles.
    """

    def __init__(self, plan: Path, manifest: PlanManifest, cuda: CudaBackend, *, any_gpu: bool = False) -> None:
        """Load a plan.

        Args:
            plan: file.
            manifest: of the plan.
            cuda: the GPU.
            any_gpu: also try a plan that was built for other GPUs; the library then decides.

        Raises:
            FileProblemError: another version, another GPU, or a damaged plan.
            MissingDependencyError: the library is not installed, or the driver is too old for it.
            DeviceMemoryError: it does not fit.
        """
        self.plan, self.manifest = plan, manifest
        self._library = check_library(plan, manifest)
        facts = cuda.facts()
        if not any_gpu:
            check_compute_capability(manifest, facts.compute_capability, facts.name, plan)
        self._messages: list[str] = []
        logger = _logger(self._library, self._messages)
        runtime = self._library.Runtime(logger)
        data = plan.read_bytes()
        if not any_gpu:
            self._check_validity(runtime, data, facts.name)
        engine = runtime.deserialize_cuda_engine(data)
        del data
        if engine is None:
            raise self.failure("load")
        self._cache: RtxRuntimeCache | None = None
        self._cached = b""
        # the library's objects refer to each other without keeping each other alive
        self._logger, self._runtime, self._engine = logger, runtime, engine
        self.inputs, self.outputs = _specs(manifest, engine, self._library, plan)
        self.profiles = profiles_of(manifest, plan)
        if len(self.profiles) != engine.num_optimization_profiles:
            raise FileProblemError(
                f"plan {plan} has {engine.num_optimization_profiles} profiles, expected {len(self.profiles)} as its "
                "manifest says; build it again with dq-build"
            )

    def _check_validity(self, runtime: Any, data: bytes, gpu: str) -> None:
        """TensorRT-RTX can say why a plan will not run here; TensorRT has no such call."""
        ask = getattr(runtime, "get_engine_validity", None)
        if ask is None:
            return
        validity, diagnostics = ask(data)[:2]
        reasons = validity_text(int(diagnostics))
        if getattr(validity, "name", "") == "INVALID" and reasons:
            text = f"{self.plan} cannot run on {gpu}: {reasons}; see its manifest for what it was built for"
            if int(diagnostics) & 16:
                raise DeviceMemoryError(text)
            raise FileProblemError(text)
        self.take_messages()

    @property
    def version(self) -> str:
        """Of the library."""
        return self._library.__version__

    def memory(self, activation_bytes: int = 0) -> PlanMemory:
        """What the engine says of its memory.

        Args:
            activation_bytes: what the runs so far asked for; 0 gives what the first profile needs at most.
        """
        weights = self._engine.get_engine_stat(self._library.EngineStat.TOTAL_WEIGHTS_SIZE)
        limit = None if self.manifest.build is None else self.manifest.build.workspace_mib
        return PlanMemory(
            weights_mib=weights / 2**20,
            activations_mib=(activation_bytes or self._engine.get_device_memory_size_for_profile_v2(0)) / 2**20,
            workspace_limit_mib=None if limit is None else float(limit),
        )

    def create_context(self) -> PlanContext:
        """An execution context without activation memory of its own.

        Raises:
            DeviceMemoryError: not enough memory.
        """
        strategy = self._library.ExecutionContextAllocationStrategy.USER_MANAGED
        config: RtxRuntimeConfig | None = None
        if hasattr(self._library, "DynamicShapesKernelSpecializationStrategy"):
            # TensorRT-RTX compiles kernels when shapes are known: before the first run
            library, engine = cast("RtxLibrary", self._library), cast("RtxCudaEngine", self._engine)
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.dynamic_shapes_kernel_specialization_strategy = (
                library.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            config.cuda_graph_strategy = library.CudaGraphStrategy.DISABLED
            self._share_cache(config)
            context = engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(strategy)
        if context is None:
            raise self.failure("create a context of")
        return PlanContext(self, context, config)

    @property
    def cache_file(self) -> Path:
        """Where kernels that were compiled for shapes are kept."""
        return self.plan.with_name(self.plan.name + CACHE_SUFFIX)

    def _share_cache(self, config: RtxRuntimeConfig) -> None:
        """Let all contexts of the engine look up compiled kernels in one place, and find those of earlier processes."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._cache is None:
                self.take_messages()
                return
            with contextlib.suppress(OSError):
                kept = self.cache_file.read_bytes()
                if self._cache.deserialize(kept):  # of another GPU or version it is left alone: kernels compile again
                    self._cached = kept
        config.set_runtime_cache(self._cache)
        self.take_messages()

    def _keep_cache(self) -> None:
        """Write what was compiled beside the plan; a folder that cannot be written costs compiling again."""
        if self._cache is None:
            return
        data = bytes(self._cache.serialize() or b"")
        if data and data != self._cached:
            with contextlib.suppress(OSError, DqError), atomic_path(self.cache_file) as temporary:
                temporary.write_bytes(data)
            self._cached = data

    def take_messages(self) -> list[str]:
        """Errors logged since the last call."""
        found = list(self._messages)
        self._messages.clear()
        return found

    def failure(self, what: str) -> DqError:
        """The error for a call that failed."""
        return error_of(self.take_messages(), what, self.plan)

    def close(self) -> None:
        """Free the engine, and keep what it compiled; its contexts must be gone."""
        self._keep_cache()
        self._cache = None
        for name in ("_engine", "_runtime", "_logger"):
            if hasattr(self, name):
                delattr(self, name)


def check_library(plan: Path, manifest: PlanManifest) -> Library:
    """The library a plan needs, after what can be checked without a GPU.

    Raises:
        FileProblemError: the plan was cut off, or is of another version.
        MissingDependencyError: the library is not installed.
    """
    runtime = manifest.runtime
    if runtime not in NAMES:
        raise FileProblemError(f"plan {plan} is for runtime {runtime!r}, expected one of {', '.join(NAMES)}")
    check_size(manifest, plan)
    profiles_of(manifest, plan)
    library = tensorrt_library(runtime)
    check_runtime_version(manifest, library.__version__, plan)
    return library


def _logger(library: Library, messages: list[str]) -> Any:
    """A logger that keeps the last errors and prints nothing."""
    severities = library.ILogger.Severity
    serious = (severities.INTERNAL_ERROR, severities.ERROR)

    base: Any = library.ILogger

    class Log(base):
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in serious:
                messages.append(msg)
                del messages[:-KEPT_MESSAGES]

    return Log()


def _specs(
    manifest: PlanManifest, engine: CudaEngine, library: Library, plan: Path
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs: the order and the names of free sizes from the manifest, the rest from the engine."""
    found: dict[str, dict[str, TensorSpec]] = {"inputs": {}, "outputs": {}}
    said = {"inputs": manifest.inputs, "outputs": manifest.outputs}
    free = {tensor.name: tensor.shape for tensors in said.values() for tensor in tensors}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = "inputs" if engine.get_tensor_mode(name) == library.TensorIOMode.INPUT else "outputs"
        element = engine.get_tensor_dtype(name).name
        if element not in _DTYPES:
            raise FileProblemError(f"tensor {name} of {plan} is {element}, expected one of {', '.join(_DTYPES)}")
        sizes = [int(size) for size in engine.get_tensor_shape(name)]
        named = free.get(name, ())
        shape = tuple(size if size >= 0 else str(named[i]) if i < len(named) else "?" for i, size in enumerate(sizes))
        found[kind][name] = TensorSpec(name=name, dtype=dtype_of(_DTYPES[element]), shape=shape)
    for kind, specs in found.items():
        wanted = [tensor.name for tensor in said[kind]]
        if set(specs) != set(wanted):
            raise FileProblemError(
                f"plan {plan} has the {kind} {', '.join(sorted(specs))}, expected {', '.join(wanted)} as its manifest "
                "says; build it again with dq-build"
            )
        found[kind] = {name: specs[name] for name in wanted}
    return tuple(found["inputs"].values()), tuple(found["outputs"].values())
