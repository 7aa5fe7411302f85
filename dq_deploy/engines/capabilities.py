"""What some runners can do besides running: a record layer by layer, a plan in device memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dq_deploy.numerics.arrays import Array
from dq_deploy.record import Record

if TYPE_CHECKING:
    from dq_deploy.engines.cuda.arrays import DeviceArray
    from dq_deploy.engines.cuda.interface import CudaBackend, CudaStream


@dataclass(frozen=True, kw_only=True)
class LayerForm:
    """How one part of an integer layer runs.

    Attributes:
        kernel: op and instruction set, or `reference`.
        form: how weights are held and multiplied, in words.
        reason: why no kernel takes it, or an empty string; the product is then an integer one in numpy.
        memory_bits: of a weight in memory, 4 or 8.
        pairs: products of two codes that are summed in int16 before they are widened; 0 where none are.
    """

    kernel: str
    form: str
    reason: str
    memory_bits: int
    pairs: int


@dataclass(frozen=True, kw_only=True)
class NumpyOperation:
    """Float operations of one name that no kernel does, in one step of one sample.

    Attributes:
        name: torch's.
        count: how many there are.
        share: of the step's time, 0 to 1, as one run took.
    """

    name: str
    count: int
    share: float


@dataclass(frozen=True, kw_only=True)
class LayerValues:
    """One integer layer in one step; axes are the layer's own, [B, C, H, W] or [B, rows, C].

    Attributes:
        inputs: of each part, float32, with the zeros the denoiser puts around an image.
        codes: of each part, centred, int32.
        accumulators: of each part, canonical, int32.
        output: float32, before the row and the residual that the same kernel adds.
    """

    inputs: tuple[Array, ...]
    codes: tuple[Array, ...]
    accumulators: tuple[Array, ...]
    output: Array


@dataclass(frozen=True, kw_only=True)
class RunsOn:
    """Where the native engine runs: a CPU has an instruction set and threads, a GPU has neither.

    Attributes:
        device: as torch calls it.
        float_type: of images.
        isa: instruction set, or None.
        threads: of one run, or None.
        attention: what attention's two products take, one of `engines.options.ATTENTION` or the float type of a GPU.
        attention_form: the instruction that multiplies there, in words, or an empty string.
    """

    device: str
    float_type: str
    isa: str | None = None
    threads: int | None = None
    attention: str = "float32"
    attention_form: str = ""


@dataclass(frozen=True, kw_only=True)
class RecordMemory:
    """Memory of a record that runs, in MiB: its weights as kernels read them, and the values of a batch of 1."""

    packed_weights_mib: float
    batch_1_mib: float


class LayerRuns(Protocol):
    """A runner that runs a record layer by layer."""

    @property
    def record(self) -> Record:
        """The quantized denoiser."""

    @property
    def runs_on(self) -> RunsOn:
        """Device, instruction set, threads."""

    def layer_forms(self) -> dict[str, tuple[LayerForm, ...]]:
        """How each integer layer runs, part by part, by module path."""

    def observe(
        self, feeds: Mapping[str, Array], layers: Collection[str] | None = None
    ) -> tuple[dict[str, Array], dict[str, LayerValues]]:
        """Run once and write down what integer layers saw and computed.

        Args:
            feeds: as of `run`.
            layers: module paths of those to look at; None looks at all, which takes memory.

        Returns:
            Outputs by name, bit for bit those of `run`, and layers by module path.

        Raises:
            InputError: as `run`.
        """

    def memory(self) -> RecordMemory | None:
        """What it takes; None where it is not known."""

    def numpy_operations(self) -> tuple[NumpyOperation, ...]:
        """Float operations done in numpy, the slowest first; runs twice on one sample. None on a GPU."""


@dataclass(frozen=True, kw_only=True)
class PlanMemory:
    """GPU memory of one plan in MiB, as the engine says.

    Attributes:
        weights_mib: its weights.
        activations_mib: what one run needs besides: activations and scratch memory of its kernels together.
        workspace_limit_mib: what the builder was allowed for scratch memory, or None where it was not limited.
    """

    weights_mib: float
    activations_mib: float
    workspace_limit_mib: float | None


class DeviceRuns(Protocol):
    """A runner that takes and gives device memory, on any CUDA stream."""

    @property
    def cuda(self) -> CudaBackend:
        """The GPU."""

    @property
    def stream(self) -> CudaStream:
        """The runner's own."""

    def memory(self) -> PlanMemory:
        """What the engine takes."""

    def place(self, feeds: Mapping[str, Array]) -> dict[str, DeviceArray]:
        """Copy numpy inputs into the runner's own device buffers, on its own stream."""

    def run_device(
        self,
        inputs: Mapping[str, Any],
        *,
        stream: Any = None,
        outputs: Mapping[str, Any] | None = None,
        cuda_graph: bool | None = None,
    ) -> dict[str, DeviceArray]:
        """Run on device memory of any library; see `dq_deploy.engines.tensorrt.runner.TensorRtRunner`."""
