"""The native engine behind the Runner interface: a record, run by our own kernels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dq_deploy.engines.base import Runner, TensorSpec, reason_of
from dq_deploy.engines.capabilities import LayerForm, LayerRuns, LayerValues, NumpyOperation, RecordMemory, RunsOn
from dq_deploy.errors import InputError, MissingDependencyError
from dq_deploy.models import TensorSpec as ModelTensorSpec
from dq_deploy.models import call_of_record, example_inputs, input_specs, output_specs
from dq_deploy.models.sizes import varying_axes
from dq_deploy.native.file.program_file import ProgramFile
from dq_deploy.native.program.by_sizes import Varying
from dq_deploy.native.trace.traced import traced_program
from dq_deploy.numerics.arrays import Array
from dq_deploy.record import Record, check_can_run, load_record
from dq_deploy.targets.manifest import manifest_of_record
from dq_deploy.version import __version__

if TYPE_CHECKING:
    from dq_deploy.native.cpu.executor import Given


class RecordRunner(Runner):
    """What the native engine is on every device: a record with the denoiser's inputs and outputs.

    Attributes:
        record: the quantized denoiser.
    """

    engine = "native"

    def __init__(self, source: Path | Record, *, finite_check: bool, hash_check: bool = True) -> None:
        """Read the record.

        Raises:
            FileProblemError: the file is not a record, or not as it was written.
        """
        record = source if isinstance(source, Record) else load_record(source, hash_check=hash_check)
        check_can_run(record)
        call = call_of_record(record)
        inputs, outputs = input_specs(call), output_specs(call)
        super().__init__(manifest_of_record(record, target="native"), finite_check=finite_check)
        self.record = record
        self.inputs = tuple(_spec(spec) for spec in inputs)
        self.outputs = tuple(_spec(spec) for spec in outputs)

    @property
    def layer_runs(self) -> LayerRuns:
        """Itself."""
        return self

    @property
    def version(self) -> str:
        """Of this package, whose own kernels run."""
        return __version__

    @property
    @abstractmethod
    def runs_on(self) -> RunsOn:
        """Device, instruction set, threads."""

    @abstractmethod
    def layer_forms(self) -> dict[str, tuple[LayerForm, ...]]:
        """How each integer layer runs, part by part, by module path."""

    @abstractmethod
    def observe(
        self, feeds: Mapping[str, Array], layers: Collection[str] | None = None
    ) -> tuple[dict[str, Array], dict[str, LayerValues]]:
        """Run once and write down what integer layers saw and computed; see `LayerRuns.observe`."""

    def memory(self) -> RecordMemory | None:
        """Not known."""
        return None

    def numpy_operations(self) -> tuple[NumpyOperation, ...]:
        """None."""
        return ()

    @property
    def runtime_words(self) -> str:
        """Engine, version, and instruction set and threads, or device and float type."""
        on = self.runs_on
        where = f"{on.device}, {on.float_type}" if on.isa is None else f"{on.isa}, {on.threads} threads"
        attention = "" if on.attention == "float32" else f", attention in {on.attention} by {on.attention_form}"
        return f"{super().runtime_words}, {where}{attention}"


class NativeRunner(RecordRunner):
    """A record on this machine's CPU kernels, with no graph file in between.

    Attributes:
        executor: the program and its memory.
        held: the program file that it runs, or None.
        repacked_from: instruction set that a program file's weights are packed for, where they had to be packed anew;
            or an empty string.
    """

    def __init__(
        self,
        source: Path | Record | ProgramFile,
        *,
        threads: int | None = None,
        isa: str | None = None,
        attention: str | None = None,
        finite_check: bool = True,
        hash_check: bool = True,
    ) -> None:
        """Trace the record's denoiser, pack its weights and start the threads.

        Args:
            source: a record, or its file; or a program file, with which nothing is traced and packed.
            threads: None takes one for each CPU this process may use.
            isa: instruction set, a name of `dq_kernels.cpu.structs.ISAS`; None takes the best this CPU has, and of a
                program file the one it is packed for, if this CPU has it.
            attention: what attention's products are computed in, one of `engines.options.ATTENTION`; None is float32.
            finite_check: refuse NaN and infinity.
            hash_check: refuse a file whose content is not what was written.

        Raises:
            MissingDependencyError: the CPU kernels were not built.
            InputError: threads or an instruction set this machine does not have.
            FileProblemError: the file is not a record.
            ModelError: an operation the native engine does not know.
        """
        self.held = held = source if isinstance(source, ProgramFile) else None
        self.repacked_from = ""
        record = source.record if isinstance(source, ProgramFile) else source
        super().__init__(record, finite_check=finite_check, hash_check=hash_check)
        try:
            from dq_kernels.cpu.library import Context, KernelInputError, KernelsMissingError, known_isas

            from dq_deploy.native.cpu.executor import CpuExecutor
        except ImportError as error:
            raise MissingDependencyError(f"the package dq_kernels cannot be imported: {error}") from error
        try:
            if held is not None and isa is None and held.isa in known_isas():
                isa = held.isa
            context = Context(threads=threads, isa=isa)
        except KernelsMissingError as error:
            raise MissingDependencyError(str(error)) from error
        except KernelInputError as error:
            raise InputError(str(error)) from error
        try:
            _check_attention(self.record, attention)
            joined = traced_program(self.record) if held is None else held.joined
            given = None if held is None else self._given(held, context.isa)
            self.executor = CpuExecutor(
                joined, self.record, context, varying_sizes(self.record), given, attention=attention or "float32"
            )
        except BaseException as error:
            context.close()
            if isinstance(error, KernelInputError):
                raise InputError(f"the native engine cannot hold the record: {reason_of(error)}") from error
            if isinstance(error, MemoryError):
                raise InputError(
                    "the native engine has not enough memory for the record's weights; end other programs, or run it "
                    "on a larger machine"
                ) from error
            raise

    def _given(self, held: ProgramFile, isa: str) -> Given:
        from dq_deploy.native.check.program import check_program
        from dq_deploy.native.check.surroundings import surroundings_of
        from dq_deploy.native.cpu.executor import Given

        self.repacked_from = "" if held.isa == isa else held.isa
        around = surroundings_of(held.record, held.joined["constants"])
        return Given(
            packed={} if self.repacked_from else held.packed,
            check=lambda program, batch: check_program(program, around(batch)),
        )

    @property
    def runtime_words(self) -> str:
        """As of every record; with the instruction set that the weights of its file were packed for."""
        words = super().runtime_words
        return f"{words}, weights packed anew from {self.repacked_from}" if self.repacked_from else words

    def preparation(self, feeds: Mapping[str, Array]) -> Callable[[], object] | None:
        """The trace of the denoiser at sizes that are not kept; see `Runner.preparation`."""
        return self.executor.programs.preparation(feeds)

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return dict(self.executor.run(feeds))

    def observe(
        self, feeds: Mapping[str, Array], layers: Collection[str] | None = None
    ) -> tuple[dict[str, Array], dict[str, LayerValues]]:
        """Run once and write down what integer layers saw and computed; see `LayerRuns.observe`."""
        from dq_deploy.native.observe.observing import observed_run

        with self.using():
            return observed_run(self.executor, self.checked_feeds(feeds), layers)

    def layer_forms(self) -> dict[str, tuple[LayerForm, ...]]:
        """How each integer layer runs, part by part, by module path."""
        forms: dict[str, list[LayerForm]] = {}
        with self.using():
            constants = sorted(self.executor.constants.items())
        for (name, _), own in constants:
            kind = "int_conv2d" if own.layer.kind == "conv2d" else "int_linear"
            kernel = "reference" if own.reason else f"{kind} {self.executor.context.isa}"
            bits, pairs = (8, 0) if own.product is None else (own.product.memory_bits, own.product.pairs)
            forms.setdefault(name, []).append(
                LayerForm(kernel=kernel, form=own.form, reason=own.reason, memory_bits=bits, pairs=pairs)
            )
        return {name: tuple(parts) for name, parts in forms.items()}

    @property
    def runs_on(self) -> RunsOn:
        """The CPU's instruction set, and threads."""
        context = self.executor.context
        return RunsOn(
            device="cpu",
            float_type="float32",
            isa=context.isa,
            threads=context.threads,
            attention=self.executor.attention,
            attention_form=context.attention_form(self.executor.attention),
        )

    def memory(self) -> RecordMemory:
        """Of packed weights, and of the values of a batch of 1."""
        with self.using():
            packed = sum(own.packed.nbytes for own in self.executor.constants.values() if own.packed is not None)
            block = self.executor.plan(1).memory.block
        return RecordMemory(packed_weights_mib=packed / 2**20, batch_1_mib=block.nbytes / 2**20)

    def numpy_operations(self) -> tuple[NumpyOperation, ...]:
        """Float operations done in numpy, the slowest first, by the second of two runs on one sample."""
        feeds = example_inputs(call_of_record(self.record), 1, 0)
        with self.using():
            self.executor.run(feeds)
            timed = list(self.executor.timed(feeds))
        total = sum(spent for _, spent in timed)
        found: dict[str, list[float]] = {}
        for op, spent in timed:
            if op.kind == "host":
                name = str(op.attributes["function"]).removesuffix(".default")
                found.setdefault(name, []).append(spent)
        operations = [
            NumpyOperation(name=name, count=len(times), share=sum(times) / total) for name, times in found.items()
        ]
        return tuple(sorted(operations, key=lambda operation: -operation.share))

    def _first_layer(self, feeds: Mapping[str, Array]) -> str:
        from dq_deploy.native.observe.observing import observed_run

        seen = observed_run(self.executor, feeds)[1]
        for name in self.executor.layer_order(feeds):
            for what, values in (("input", seen[name].inputs), ("output", (seen[name].output,))):
                if not all(np.isfinite(value).all() for value in values):
                    return f"; the first layer whose {what} is not finite is {name}"
        return "; the output of every quantized layer is finite, so it arises behind them"

    def _free(self) -> None:
        self.executor.close()


def _check_attention(record: Record, attention: str | None) -> None:
    """Refuse codes that the record has no quantizers for."""
    found = [own.why_not_int8 for own in record.attention.values()]
    if attention != "int8" or "" in found:
        return
    why = f": {next(iter(record.attention))}, {found[0]}" if found else ""
    raise InputError(
        f"attention is int8, but the record has no quantizers for it{why}; quantize with `attention` int8, or take bf16"
    )


def varying_sizes(record: Record) -> Varying:
    """The sizes of a record's call, and its programs at others."""
    call = call_of_record(record)
    return Varying(retrace=partial(traced_program, record), sizes=call.sizes, axes=varying_axes(input_specs(call)))


def _spec(spec: ModelTensorSpec) -> TensorSpec:
    return TensorSpec(name=spec.name, dtype=np.dtype(spec.dtype), shape=tuple(spec.shape))
