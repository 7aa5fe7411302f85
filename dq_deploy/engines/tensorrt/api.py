"""The part of TensorRT's Python interface that this project uses, as types.

TensorRT 10.16, TensorRT 11 and TensorRT-RTX have it in common, except where a docstring names one of them. The wheels
carry no type files, so the signatures are those in the documentation strings of the bindings;
tests/engines/tensorrt/test_api.py compares every name, and each parameter, with what the bindings say.

Objects of the library are obtained from `dq_deploy.engines.tensorrt.library.tensorrt_library`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class EnumValue(Protocol):
    """A member of one of the enumerations."""

    @property
    def name(self) -> str:
        """As in the documentation, such as `INT8`."""

    def __int__(self) -> int: ...


class Severities(Protocol):
    """`Logger.Severity`."""

    INTERNAL_ERROR: EnumValue
    ERROR: EnumValue
    WARNING: EnumValue
    INFO: EnumValue
    VERBOSE: EnumValue


class DataTypes(Protocol):
    """`DataType`."""

    FLOAT: EnumValue
    HALF: EnumValue
    BF16: EnumValue
    INT8: EnumValue
    INT32: EnumValue
    INT64: EnumValue
    BOOL: EnumValue
    UINT8: EnumValue
    FP8: EnumValue
    INT4: EnumValue


class NetworkFlags(Protocol):
    """`NetworkDefinitionCreationFlag`."""

    STRONGLY_TYPED: EnumValue


class Verbosities(Protocol):
    """`ProfilingVerbosity`: what the engine inspector will be able to say."""

    DETAILED: EnumValue


class MemoryPools(Protocol):
    """`MemoryPoolType`."""

    WORKSPACE: EnumValue


class TensorModes(Protocol):
    """`TensorIOMode`."""

    INPUT: EnumValue
    OUTPUT: EnumValue


class InformationFormats(Protocol):
    """`LayerInformationFormat`."""

    ONELINE: EnumValue
    JSON: EnumValue


class AllocationStrategies(Protocol):
    """`ExecutionContextAllocationStrategy`."""

    STATIC: EnumValue
    USER_MANAGED: EnumValue


class EngineStats(Protocol):
    """`EngineStat`."""

    TOTAL_WEIGHTS_SIZE: EnumValue


class HostMemory(Protocol):
    """`IHostMemory`: a serialized engine; supports the buffer protocol."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""

    def __buffer__(self, flags: int, /) -> memoryview: ...


class Logger(Protocol):
    """`ILogger`: subclass it and override `log`."""

    def log(self, severity: EnumValue, msg: str) -> None:
        """Called by the library with each message."""


class Tensor(Protocol):
    """`ITensor`: an input or output of a network."""

    @property
    def name(self) -> str:
        """Its name in the ONNX file."""

    @property
    def dtype(self) -> EnumValue:
        """A `DataType`."""

    @property
    def shape(self) -> Sequence[int]:
        """Dimensions; -1 where free."""


class NetworkDefinition(Protocol):
    """`INetworkDefinition`."""

    @property
    def num_layers(self) -> int:
        """Layers before any optimization."""

    @property
    def num_inputs(self) -> int:
        """Inputs."""

    def get_input(self, index: int) -> Tensor:
        """One input."""


class OptimizationProfile(Protocol):
    """`IOptimizationProfile`: the shapes an engine is built for."""

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
        """Range of one input."""


class TimingCache(Protocol):
    """`ITimingCache`."""

    def serialize(self) -> HostMemory:
        """Its bytes, for the next build."""


class ProgressMonitor(Protocol):
    """`IProgressMonitor`: subclass it; the library calls these from its own threads."""

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """A phase begins."""

    def step_complete(self, phase_name: str, step: int) -> bool:
        """A step is done; False cancels the build."""

    def phase_finish(self, phase_name: str) -> None:
        """A phase has ended."""


class BuilderConfig(Protocol):
    """`IBuilderConfig`."""

    profiling_verbosity: EnumValue
    progress_monitor: ProgressMonitor | None

    def set_memory_pool_limit(self, pool: EnumValue, pool_size: int) -> None:
        """Bytes a pool may have."""

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        """Index of the profile, or -1 where it is not valid."""

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        """From bytes; none give a new one."""

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        """Whether the cache was taken."""

    def get_timing_cache(self) -> TimingCache | None:
        """The one in use."""


class RtxBuilderConfig(BuilderConfig, Protocol):
    """What TensorRT-RTX's `IBuilderConfig` has on top."""

    num_compute_capabilities: int

    def set_compute_capability(self, compute_capability: EnumValue, index: int) -> bool:
        """One of the architectures of the plan."""


class Builder(Protocol):
    """`Builder`."""

    def create_network(self, flags: int = 0) -> NetworkDefinition:
        """An empty network."""

    def create_builder_config(self) -> BuilderConfig:
        """Default settings."""

    def create_optimization_profile(self) -> OptimizationProfile:
        """An empty profile."""

    def build_serialized_network(self, network: NetworkDefinition, config: BuilderConfig) -> HostMemory | None:
        """The plan, or None: the logger then has the reason."""


class ParserError(Protocol):
    """`ParserError`."""

    def code(self) -> EnumValue:
        """An `ErrorCode`."""

    def desc(self) -> str:
        """What is wrong."""

    def node(self) -> int:
        """Index of the node, -1 where there is none."""

    def node_name(self) -> str:
        """Name of the node in the ONNX file."""

    def node_operator(self) -> str:
        """Its operator."""


class OnnxParser(Protocol):
    """`OnnxParser`."""

    @property
    def num_errors(self) -> int:
        """Of the last parse."""

    def parse_from_file(self, model: str) -> bool:
        """Parse a file, with external data beside it."""

    def get_error(self, index: int) -> ParserError:
        """One of them."""


class EngineInspector(Protocol):
    """`EngineInspector`."""

    def get_engine_information(self, format: EnumValue) -> str:
        """What each layer became."""


class ExecutionContext(Protocol):
    """`IExecutionContext`."""

    @property
    def active_optimization_profile(self) -> int:
        """Index of the profile in use."""

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        """False where the profile does not hold it; give a tuple."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """Shape for the current input shapes."""

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Device pointer of one input or output."""

    def infer_shapes(self) -> list[str]:
        """Names of inputs that still lack a shape."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Switch the profile."""

    def set_device_memory(self, memory: int, size: int) -> None:
        """Activation memory, 256-byte aligned, of a context made with `USER_MANAGED`."""

    def update_device_memory_size_for_shapes(self) -> int:
        """Bytes of activation memory for the current input shapes."""

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Enqueue one run."""


class CudaEngine(Protocol):
    """`ICudaEngine`."""

    @property
    def name(self) -> str:
        """Name of the network."""

    @property
    def num_io_tensors(self) -> int:
        """Inputs and outputs."""

    @property
    def num_layers(self) -> int:
        """Layers after optimization."""

    @property
    def num_optimization_profiles(self) -> int:
        """Profiles."""

    @property
    def device_memory_size_v2(self) -> int:
        """Bytes of activation memory, the largest of all profiles."""

    @property
    def streamable_weights_size(self) -> int:
        """Bytes of weights that can be streamed."""

    def get_tensor_name(self, index: int) -> str:
        """Name of an input or output."""

    def get_tensor_mode(self, name: str) -> EnumValue:
        """A `TensorIOMode`."""

    def get_tensor_dtype(self, name: str) -> EnumValue:
        """A `DataType`."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """Dimensions; -1 where free."""

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]:
        """Smallest, best and largest shape."""

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        """Bytes of activation memory of one profile."""

    def get_engine_stat(self, stat: EnumValue) -> int:
        """A number of `EngineStat`."""

    def create_execution_context(self, strategy: EnumValue | RtxRuntimeConfig) -> ExecutionContext | None:
        """A context; None where memory is short."""

    def create_engine_inspector(self) -> EngineInspector:
        """What the engine is made of."""


class RtxRuntimeConfig(Protocol):
    """How TensorRT-RTX makes a context."""

    dynamic_shapes_kernel_specialization_strategy: Any
    cuda_graph_strategy: Any

    def set_execution_context_allocation_strategy(self, strategy: EnumValue) -> None:
        """Who gives the activation memory."""

    def create_runtime_cache(self) -> RtxRuntimeCache | None:
        """An empty one."""

    def set_runtime_cache(self, cache: RtxRuntimeCache) -> bool:
        """Where kernels are looked up that are compiled for shapes; whether that is taken."""


class RtxRuntimeCache(Protocol):
    """Kernels that TensorRT-RTX compiled for shapes."""

    def deserialize(self, blob: bytes) -> bool:
        """Take over what another process kept; False where it is of another version or GPU."""

    def serialize(self) -> Any:
        """Bytes to keep, as a buffer."""


class RtxCudaEngine(CudaEngine, Protocol):
    """What TensorRT-RTX's `ICudaEngine` has on top."""

    def create_runtime_config(self) -> RtxRuntimeConfig:
        """A configuration to change and give to `create_execution_context`."""


class Runtime(Protocol):
    """`Runtime`; needs a driver."""

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> CudaEngine | None:
        """The engine, or None: the logger then has the reason."""


class RtxRuntime(Runtime, Protocol):
    """What TensorRT-RTX's `Runtime` has on top."""

    @property
    def engine_header_size(self) -> int:
        """Bytes that `get_engine_validity` reads."""

    def get_engine_validity(self, buffer: bytes) -> tuple[Any, ...]:
        """Whether a plan can run on this GPU, and why not."""


class Library(Protocol):
    """The module `tensorrt` or `tensorrt_rtx`.

    The two `I...` classes are there to be subclassed.
    """

    __version__: str
    ILogger: type[Any]
    IProgressMonitor: type[Any]
    DataType: DataTypes
    NetworkDefinitionCreationFlag: NetworkFlags
    ProfilingVerbosity: Verbosities
    MemoryPoolType: MemoryPools
    TensorIOMode: TensorModes
    LayerInformationFormat: InformationFormats
    ExecutionContextAllocationStrategy: AllocationStrategies
    EngineStat: EngineStats

    def Builder(self, logger: Logger) -> Builder:
        """A builder; TensorRT needs a GPU for it, TensorRT-RTX none."""

    def OnnxParser(self, network: NetworkDefinition, logger: Logger) -> OnnxParser:
        """A parser that fills a network."""

    def Runtime(self, logger: Logger) -> Runtime:
        """A runtime; needs a driver."""


class RtxLibrary(Library, Protocol):
    """The module `tensorrt_rtx`."""

    ComputeCapability: Any
    """Enumeration with one member for each architecture: `SM80`."""
    DynamicShapesKernelSpecializationStrategy: Any
    """When kernels of free shapes are compiled: `EAGER` is before the first run."""
    CudaGraphStrategy: Any
    """Whether the library captures CUDA graphs itself: `DISABLED`."""
