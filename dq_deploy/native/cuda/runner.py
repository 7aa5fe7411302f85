"""The native engine on an NVIDIA GPU behind the Runner interface."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from dq_deploy.engines.capabilities import LayerForm, LayerValues, RunsOn
from dq_deploy.errors import InputError, OptionError
from dq_deploy.native.runner import RecordRunner, varying_sizes
from dq_deploy.native.trace.traced import traced_program
from dq_deploy.numerics.arrays import Array
from dq_deploy.record import Record

FLOAT_TYPES = ("float16", "bfloat16", "float32")


class NativeCudaRunner(RecordRunner):
    """A record on one GPU: Triton kernels, the whole step in one CUDA graph. Never run on a GPU.

    Attributes:
        executor: the program, its memory and its graphs.
    """

    forkable = False

    def __init__(
        self,
        source: Path | Record,
        *,
        dtype: str = "float16",
        finite_check: bool = True,
        torch_device: str = "cuda",
        hash_check: bool = True,
    ) -> None:
        """Trace the record's denoiser and move its weights to the GPU.

        Args:
            source: a record, or its file.
            dtype: float type of images, one of `FLOAT_TYPES`; integer products are the same in all of them.
            finite_check: refuse NaN and infinity.
            torch_device: where; the CPU only under Triton's interpreter.
            hash_check: refuse a file whose content is not what was written.

        Raises:
            OptionError: an unknown float type.
            InputError: a layer that no GPU kernel takes.
        """
        if dtype not in FLOAT_TYPES:
            raise OptionError(f"float type is {dtype!r}, expected one of {', '.join(FLOAT_TYPES)}")
        super().__init__(source, finite_check=finite_check, hash_check=hash_check)
        from dq_kernels.cpu.library import KernelInputError

        from dq_deploy.native.cuda.executor import CudaExecutor

        try:
            self.executor = CudaExecutor(
                traced_program(self.record),
                self.record,
                device=torch_device,
                dtype=dtype,
                varying=varying_sizes(self.record),
            )
        except KernelInputError as error:
            raise InputError(str(error)) from error

    def preparation(self, feeds: Mapping[str, Array]) -> Callable[[], object] | None:
        """The trace of the denoiser at sizes that are not kept; see `Runner.preparation`."""
        return self.executor.programs.preparation(feeds)

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return dict(self.executor.run(feeds))

    def observe(
        self, feeds: Mapping[str, Array], layers: Collection[str] | None = None
    ) -> tuple[dict[str, Array], dict[str, LayerValues]]:
        """Run once, kernel by kernel, and write down what integer layers saw and computed."""
        from dq_deploy.native.cuda.observing import observed_run

        with self.using():
            return observed_run(self.executor, self.checked_feeds(feeds), layers)

    def layer_forms(self) -> dict[str, tuple[LayerForm, ...]]:
        """How each integer layer runs, part by part, by module path."""
        forms: dict[str, list[LayerForm]] = {}
        with self.using():
            bits = {(name, part): self.executor.weight_bits(name, part) for name, part in self.executor.parts()}
        for name, part in bits:
            kind = "int_conv2d" if self.record.layers[name].kind == "conv2d" else "int_linear"
            held = bits[name, part]
            form = f"int8 tensor cores, int{held} in memory"
            forms.setdefault(name, []).append(
                LayerForm(kernel=f"{kind} triton", form=form, reason="", memory_bits=held, pairs=0)
            )
        return {name: tuple(parts) for name, parts in forms.items()}

    @property
    def runs_on(self) -> RunsOn:
        """The GPU, and the float type of images."""
        return RunsOn(device=str(self.executor.device), float_type=self.executor.dtype)

    def _free(self) -> None:
        self.executor.close()
