"""How any engine is proven: the steps that every proof has, in their order; each kind of engine has its prover."""

from __future__ import annotations

import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from dq_deploy.record import Record
from dq_deploy.verify.file.same_file import SameFile, TracedOnce
from dq_deploy.verify.inputs import Runs
from dq_deploy.verify.layers.comparison import LayerResults, Progress
from dq_deploy.verify.output.float_path import FloatPath
from dq_deploy.verify.output.outputs import Outputs
from dq_deploy.verify.steps import LeftOut, Reason, Step

if TYPE_CHECKING:
    from dq_deploy.models import Denoiser


def silent(_line: str) -> None:
    """A progress that says nothing."""


@dataclass(frozen=True, kw_only=True)
class ProofOptions:
    """How much is looked at, and how the engine is opened.

    Attributes:
        steps: step buckets that get a batch of their own, spread over all of them.
        inputs: samples in each such batch.
        seed: of the inputs.
        model: the float model the record was made from; adds simulation against float.
        engine: runtime; by default the one the manifest names.
        threads: threads of one run.
        isa: instruction set of the native engine; None for the best, `all` for each this CPU has.
        device: of the native engine: cpu, cuda, or None for a GPU where there is one that can run it.
        attention: what the native engine computes attention's products in; None is float32.
        compare_with_record: compare the engine with what its record makes.
        run_plan: run a plan where a driver is found, and compare its outputs.
        sizes: of the axes that vary, by name, at which the engine is proven besides its call's own; where none is given
            the proof takes smaller ones by itself.
        progress: called with a line at each stage.
    """

    steps: int = 5
    inputs: int = 2
    seed: int = 0
    model: Denoiser | None = None
    engine: str | None = None
    threads: int | None = None
    isa: str | None = None
    device: str | None = None
    attention: str | None = None
    compare_with_record: bool = True
    run_plan: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)
    progress: Progress = silent


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is proven.

    Attributes:
        record: the quantized denoiser; None where a plan is read alone.
        path: the engine's file.
        options: how.
        traced: the record's denoiser, where several engines of one record are proven.
    """

    record: Record | None
    path: Path
    options: ProofOptions
    traced: TracedOnce | None = None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was seen inside a running engine: its runs, and its layers."""

    runs: Runs
    results: LayerResults


KernelsT = TypeVar("KernelsT")
ReportT = TypeVar("ReportT")


@dataclass(frozen=True, kw_only=True)
class Evidence(Generic[KernelsT]):
    """What each step of a proof gave; a step that was left out gave a `LeftOut`.

    Attributes:
        file: of the file against what its record makes.
        seen: what was seen inside.
        probe: None where every layer was probed.
        outputs: of the denoiser's output.
        float_operations: between the layers.
        kernels: what runs for each layer.
        memory: of the opened engine against what its record makes.
        seconds: time taken.
    """

    file: SameFile | LeftOut
    seen: Seen | LeftOut
    probe: LeftOut | None
    outputs: Outputs | LeftOut
    float_operations: FloatPath | LeftOut
    kernels: KernelsT
    memory: SameFile | LeftOut
    seconds: float

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The steps that were not done."""
        steps = (self.file, self.seen, self.probe, self.outputs, self.float_operations, self.memory)
        return tuple(step for step in steps if isinstance(step, LeftOut))


class Prover(ABC, Generic[KernelsT, ReportT]):
    """How each step of a proof is done with one kind of engine; `prove` calls them in the order they stand here.

    Attributes:
        subject: what is proven.
    """

    def __init__(self, subject: Subject) -> None:
        """Take the engine.

        Raises:
            DqError: it is not what it is said to be, or not of the record.
        """
        self.subject = subject

    @classmethod
    @abstractmethod
    def takes(cls, path: Path) -> bool:
        """Whether a file is this prover's kind of engine."""

    @classmethod
    def provers_of(cls, subject: Subject) -> Sequence[Prover[KernelsT, ReportT]]:
        """The proofs of an engine: one, or several where it runs in several ways."""
        return [cls(subject)]

    @abstractmethod
    def compare_file(self) -> SameFile | LeftOut:
        """Compare the engine's file with what its record makes."""

    @abstractmethod
    def opened(self, folder: Path) -> AbstractContextManager[object]:
        """Hold the engine open.

        Args:
            folder: scratch folder, deleted behind the proof.
        """

    @abstractmethod
    def run(self) -> Runs | LeftOut:
        """Run the inputs."""

    @abstractmethod
    def compare_layers(self, runs: Runs) -> LayerResults:
        """Compare every layer's codes and accumulators in those runs with the numerics."""

    @abstractmethod
    def probe_layers(self, seen: Seen) -> LeftOut | None:
        """Compare every layer for extreme inputs; what is found is added to the layers."""

    @abstractmethod
    def compare_outputs(self, seen: Seen | LeftOut) -> Outputs | LeftOut:
        """Compare the denoiser's output with the simulation of its record."""

    @abstractmethod
    def replay_float_operations(self, seen: Seen) -> FloatPath | LeftOut:
        """Compare the float operations between the layers with the float module's."""

    @abstractmethod
    def attest_kernels(self, seen: Seen | LeftOut) -> KernelsT:
        """Say what runs for each layer."""

    @abstractmethod
    def compare_memory(self) -> SameFile | LeftOut:
        """Compare what the opened engine holds with what its record makes."""

    @abstractmethod
    def report(self, evidence: Evidence[KernelsT]) -> ReportT:
        """Put the report together."""

    def report_of_unrun(self, file: SameFile, error: Exception, seconds: float) -> ReportT:
        """The report of a file that differs from what its record makes and that does not run.

        Raises:
            Exception: the error, where this kind of engine has no such report.
        """
        raise error


def prove(prover: Prover[KernelsT, ReportT]) -> ReportT:
    """Do every step of a proof.

    Args:
        prover: of the engine.

    Returns:
        The report; no difference raises.

    Raises:
        DqError: the engine cannot be opened or run, although its file is what its record makes.
    """
    start = time.perf_counter()
    file: SameFile | LeftOut = LeftOut(step=Step.FILE, reason=Reason.NOT_ASKED)
    if prover.subject.options.compare_with_record:
        file = prover.compare_file()
    try:
        with tempfile.TemporaryDirectory(prefix="dq-verify-") as folder, prover.opened(Path(folder)):
            return prover.report(_evidence(prover, file, start))
    except Exception as error:  # a damaged file makes whoever reads it raise what they like
        if not isinstance(file, SameFile) or not file.differences:
            raise
        return prover.report_of_unrun(file, error, time.perf_counter() - start)


def _evidence(prover: Prover[KernelsT, ReportT], file: SameFile | LeftOut, start: float) -> Evidence[KernelsT]:
    """Every step with the opened engine."""
    progress = prover.subject.options.progress
    runs = prover.run()
    seen: Seen | LeftOut
    probe: LeftOut | None
    float_operations: FloatPath | LeftOut
    if isinstance(runs, LeftOut):
        seen = runs
        probe = LeftOut(step=Step.PROBE, reason=runs.reason, text=runs.text)
    else:
        seen = Seen(runs=runs, results=prover.compare_layers(runs))
        progress("probing every layer with extreme inputs at every step")
        probe = prover.probe_layers(seen)
    outputs = prover.compare_outputs(seen)
    if isinstance(seen, LeftOut):
        float_operations = LeftOut(step=Step.FLOAT_OPERATIONS, reason=seen.reason, text=seen.text)
    else:
        progress(f"comparing the float operations between the layers on {len(seen.runs.all)} batches")
        float_operations = prover.replay_float_operations(seen)
    kernels = prover.attest_kernels(seen)
    memory: SameFile | LeftOut = LeftOut(step=Step.MEMORY, reason=Reason.NOT_ASKED)
    if prover.subject.options.compare_with_record:
        memory = prover.compare_memory()
    return Evidence(
        file=file,
        seen=seen,
        probe=probe,
        outputs=outputs,
        float_operations=float_operations,
        kernels=kernels,
        memory=memory,
        seconds=time.perf_counter() - start,
    )
