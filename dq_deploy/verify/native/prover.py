"""The proof of the native engine: what `verify` does for a record that is given as the engine."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dq_deploy.engines.base import Runner
from dq_deploy.engines.capabilities import LayerForm
from dq_deploy.errors import DqError, InputError, MissingDependencyError
from dq_deploy.manifest.values import EngineManifest
from dq_deploy.native.observe.attention import (
    attention_error,
    attention_values,
    macs_in_codes,
    macs_of_attention,
    names_in_codes,
)
from dq_deploy.native.program.layer_constants import kernel_weights
from dq_deploy.native.runner import NativeRunner
from dq_deploy.open_engine import NATIVE_SUFFIXES, PROGRAM_SUFFIX, RECORD_SUFFIXES, open_engine
from dq_deploy.record import Layer, content_sha256
from dq_deploy.verify.file.same_file import SameFile
from dq_deploy.verify.inputs import Batch, Runs
from dq_deploy.verify.inside import InsideProver, Layers, check_model
from dq_deploy.verify.layers.attestation import MISSING, PAIR_LIMIT, Kernel
from dq_deploy.verify.layers.comparison import LayerResults
from dq_deploy.verify.layers.outputs import different_bits
from dq_deploy.verify.native.attention import AttentionComparison
from dq_deploy.verify.native.constants import native_differences
from dq_deploy.verify.native.layers import NativeLayers, first_batch_dependent
from dq_deploy.verify.native.twin import Twin
from dq_deploy.verify.output.outputs import TwinOutputs
from dq_deploy.verify.prover import Evidence, Seen, Subject
from dq_deploy.verify.report.findings import Claims, LayerEvidence, layer_report
from dq_deploy.verify.report.values import AttentionReport, Failure, Fault, LayerReport, Report, failures_of_file
from dq_deploy.verify.steps import LeftOut, Reason, Step

if TYPE_CHECKING:
    from dq_deploy.verify.native.layers import AnyNative
    from dq_deploy.verify.output.float_replay import AttentionsOf

IN_ITS_PROGRAM = "the simulation is the engine's own program with every integer layer computed by the numerics"
ON_GPU = (
    "on a GPU layers met the denoiser's inputs alone, no extreme ones, and the output was compared with the training "
    "simulation, not with one inside the engine's own float operations"
)

ATTENTION_TYPES = {"bf16": "bfloat16"}
"""Float type of each of `engines.options.ATTENTION` that is another than the engine's."""

EVERY_ISA = "all"
"""Stands for each instruction set this CPU has."""


class NativeProver(InsideProver):
    """Proves that a record run by this project's kernels computes another reading of that record."""

    def __init__(self, subject: Subject, runner: AnyNative | None = None) -> None:
        """Take the engine.

        Args:
            subject: what is proven.
            runner: opened without a finite check, for a proof of it as it is; whether it says that it runs this record
                is then not asked. By default the record's file is opened.
        """
        super().__init__(subject)
        self._given = runner
        self._compared_attention: AttentionComparison | None = None

    @classmethod
    def takes(cls, path: Path) -> bool:
        """A record, or a program file of one."""
        return path.suffix in NATIVE_SUFFIXES

    @classmethod
    def provers_of(cls, subject: Subject) -> Sequence[NativeProver]:
        """One, or one for each instruction set of this CPU.

        Raises:
            MissingDependencyError: the CPU kernels were not built.
        """
        if subject.options.isa != EVERY_ISA:
            return [cls(subject)]
        return [cls(replace(subject, options=replace(subject.options, isa=name))) for name in _isas_of_this_cpu()]

    def compare_file(self) -> LeftOut:
        """Not done: what the engine makes of the record is compared when it is opened."""
        return LeftOut(step=Step.FILE, reason=Reason.IS_THE_RECORD)

    @contextmanager
    def opened(self, folder: Path) -> Iterator[None]:
        """Open the record.

        Raises:
            InputError: it is another record, or the model is another one.
        """
        self.folder = folder
        if self._given is not None:
            self.runner = self._given
            yield
            return
        options = self.options
        with open_engine(
            self.subject.path,
            engine=options.engine,
            threads=options.threads,
            isa=options.isa,
            device=options.device,
            attention=options.attention,
            finite_check=False,
            hash_check=self.subject.path.suffix != PROGRAM_SUFFIX,  # what differs in one is named, not its hash
        ) as runner:
            self.runner = _native(runner)
            self._check_same_record()
            options.progress(f"running the engine {self.runtime_text()}")
            yield

    def _check_same_record(self) -> None:
        mine, other = content_sha256(self.record), str(self._manifest.record_sha256)
        if mine != other:
            path = self.subject.path
            advice = "give the record it was made from"
            if path.suffix in RECORD_SUFFIXES:
                advice = "give the same record twice, or leave `record` out"
            raise InputError(f"engine {path} is the record {other[:12]}, the checkpoint is {mine[:12]}; {advice}")
        check_model(self.record, self.options.model)

    @contextmanager
    def running(self) -> Iterator[Runner]:
        """The opened engine itself."""
        yield self.runner

    def first_batch_dependent(self, batch: Batch, index: int) -> str:
        """The first layer whose input for a sample depends on the rest of its batch."""
        return first_batch_dependent(self.runner, batch, index)

    def compare_layers(self, runs: Runs) -> LayerResults:
        """Every layer as the engine shows it."""
        self._layers = NativeLayers(self.layer_subject(runs), self.runner)
        return self._layers.run()

    def probe_layers(self, seen: Seen) -> LeftOut | None:
        """Every layer part by itself; on a GPU no single operation can be run so."""
        runner = self._on_cpu
        if runner is None:
            return LeftOut(step=Step.PROBE, reason=Reason.NOT_READABLE, text=ON_GPU)
        self._layers.probe(runner, seed=self.options.seed)
        return None

    def twin(self, seen: Seen) -> TwinOutputs:
        """The engine's own program with the numerics in the integer layers' place.

        Kernels round as they are defined to, so the twin's output must be the engine's, bit for bit; that is more than
        the margin asked of other engines. Layers that differ in it are noted with the others.
        """
        runner = self._on_cpu
        if runner is None:
            return TwinOutputs(outputs=None)
        twin, runs, layers = Twin(runner.executor, self.record), seen.runs, seen.results.layers
        try:
            found = [twin.run(batch.feeds) for batch in runs.batches]
            simulated = [tuple(values[name] for name in runs.names) for values in found]
        except DqError as error:
            words = f"the simulation inside the engine's float operations cannot be run: {error}"
            return TwinOutputs(outputs=None, failure=words)
        for name, difference in twin.differences.items():
            if layers[name].first is None:
                layers[name].first = difference
        mine = runs.finals[: len(simulated)]
        wrong = [
            i
            for i, (ours, theirs) in enumerate(zip(mine, simulated, strict=True))
            if any(different_bits(a, b).any() for a, b in zip(ours, theirs, strict=True))
        ]
        if not wrong or seen.results.any_difference:
            return TwinOutputs(outputs=simulated)
        failure = (
            f"output of batch {wrong[0]} is not that of the same program with the numerics' integer layers, although "
            "every layer is equal; runs of the engine differ among themselves"
        )
        return TwinOutputs(outputs=simulated, failure=failure)

    def float_type(self) -> str:
        """Of the float operations, on a GPU as it was opened."""
        return self.runner.runs_on.float_type

    def attention_type(self) -> str:
        """Of attention's products, as the engine says that it runs them."""
        return ATTENTION_TYPES.get(self.runner.runs_on.attention, self.float_type())

    def attentions_in_codes(self) -> AttentionsOf | None:
        """What gives the attentions of a batch that run in codes, by one more run."""
        runner = self._on_cpu
        if runner is None or self.runner.runs_on.attention != "int8":
            return None
        return lambda batch: attention_values(runner.executor, batch.feeds)

    def names_in_codes(self) -> Collection[str]:
        """As the program has them."""
        return () if self._on_cpu is None else names_in_codes(self._on_cpu.executor)

    def report(self, evidence: Evidence[Layers]) -> Report:
        """The report, with how far attention is from float32 where it runs in another type."""
        report = super().report(evidence)
        runner, on = self._on_cpu, self.runner.runs_on
        if runner is None or on.attention == "float32":
            return report
        assert isinstance(evidence.seen, Seen)  # of `run`
        found = [attention_error(runner.executor, batch.feeds) for batch in evidence.seen.runs.batches]
        codes = self._attention_codes(evidence.seen)
        work = macs_in_codes(runner.executor)
        return replace(
            report,
            integer_mac_share=(report.macs.integer + work) / self.macs.of_all,
            macs=replace(report.macs, integer=report.macs.integer + work),
            attention=AttentionReport(
                precision=on.attention,
                form=on.attention_form,
                operations=max((one.operations for one in found), default=0),
                mac_share=macs_of_attention(runner.executor) / self.macs.of_all,
                largest_error=max((one.largest for one in found), default=0.0),
                rms_error=max((one.rms for one in found), default=0.0),
                heads_compared=0 if codes is None else codes.heads,
                codes_compared=0 if codes is None else codes.codes,
                codes_moved=0 if codes is None else codes.moved,
                accumulators_compared=0 if codes is None else codes.accumulators,
            ),
        )

    def _attention_codes(self, seen: Seen) -> AttentionComparison | None:
        """The comparison of attention in codes, done once; None where it runs in floats."""
        runner = self._on_cpu
        if runner is None or self.runner.runs_on.attention != "int8":
            return None
        if self._compared_attention is None:
            self.options.progress("comparing attention in codes with the numerics")
            self._compared_attention = AttentionComparison(executor=runner.executor, record=self.record)
            for batch in seen.runs.batches:
                self._compared_attention.add(batch.feeds)
        return self._compared_attention

    def attest_kernels(self, seen: Seen | LeftOut) -> Layers:
        """The form that the engine runs each layer in, beside what was compared of it."""
        assert isinstance(seen, Seen)  # of `run`
        forms = self.runner.layer_forms()
        return tuple(self._layer_report(seen, name, forms.get(name, ())) for name in self.record.layers)

    def compare_memory(self) -> SameFile:
        """The program, its calls, packed weights, tables and parameters."""
        self.options.progress("comparing the program and its constants with what the record makes")
        return SameFile(differences=tuple(native_differences(self.record, self.runner)))

    def claims(self) -> Claims:
        """Of the record; it says nothing of multiply-accumulates."""
        said = self._manifest
        return Claims(target=said.target, mode=said.mode, record_sha256=str(said.record_sha256), says_macs=False)

    @property
    def _on_cpu(self) -> NativeRunner | None:
        """The runner where its program can be run operation by operation: on a CPU."""
        return self.runner if isinstance(self.runner, NativeRunner) else None

    @property
    def _manifest(self) -> EngineManifest:
        assert self.runner.manifest is not None  # a record's own
        return self.runner.manifest

    def runtime_text(self) -> str:
        """Engine, version, and instruction set and threads or device and float type."""
        return self.runner.runtime_words

    def notes(self) -> tuple[str, ...]:
        """Layers that no kernel takes, and what the output was compared with."""
        simulated = ON_GPU if self._on_cpu is None else IN_ITS_PROGRAM
        return (*kernel_notes(self.runner.layer_forms()), simulated)

    def failures(self, seen: Seen) -> tuple[str, ...]:
        """Whether a sample's neighbours change it; on a GPU torch's own products may, and the notes say so."""
        difference = seen.runs.batch_difference
        codes = self._attention_codes(seen)
        wrong = () if codes is None else tuple(codes.failures.values())
        return wrong if not difference or self._on_cpu is None else (difference, *wrong)

    def _layer_report(self, seen: Seen, name: str, forms: Sequence[LayerForm]) -> LayerReport:
        """One layer with the form of its kernels; where numpy multiplies, the reason says so."""
        layer = self.record.layers[name]
        parts = len(layer.parts)
        kernels = tuple(kernel_of(form, layer, i) for i, form in enumerate(forms[:parts])) or (MISSING,) * parts
        asked = "int_conv2d" if layer.kind == "conv2d" else "int_linear"
        known = LayerEvidence(
            tally=seen.results.layers[name],
            kernels=kernels,
            requested=(f"{asked} W{layer.weight_bits}A{layer.activation_bits}",) * parts,
            asked_integer=True,
            form="; ".join(dict.fromkeys(form.form for form in forms)),
        )
        found = layer_report(layer, known, self.macs)
        reasons = "; ".join(dict.fromkeys(form.reason for form in forms if form.reason))
        return replace(found, reason=f"in numpy, not in a kernel: {reasons}") if reasons and not found.reason else found


def _native(runner: Runner) -> AnyNative:
    """The runner as one of the native engine's."""
    if isinstance(runner, NativeRunner):
        return runner
    from dq_deploy.native.cuda.runner import NativeCudaRunner

    if isinstance(runner, NativeCudaRunner):
        return runner
    raise InputError(f"engine {runner.engine} runs this record, expected the native engine")


def _isas_of_this_cpu() -> tuple[str, ...]:
    from dq_kernels.cpu.library import KernelsMissingError, known_isas

    try:
        return known_isas()
    except KernelsMissingError as error:
        raise MissingDependencyError(str(error)) from error


def joined_report(reports: Sequence[Report], names: Sequence[str]) -> Report:
    """The last report, with the failures and notes of the others behind the name of their instruction set."""
    named = list(zip(names, reports, strict=True))
    runs = [Failure(of=f.of, text=f"{n}: {f.text}") for n, r in named for f in r.found if f.of is Fault.RUN]
    differences = [f"{n}: {text}" for n, r in named for text in r.file_differences]
    notes = list(reports[-1].notes)
    for name, report in named[:-1]:
        gaps = report.max_code_difference, report.max_accumulator_difference
        verdict = "exact" if report.exact else f"not exact, {len(report.failures)} findings"
        notes.append(
            f"{name}: {verdict}; {report.layers_compared} of {report.layers_total} layers, {report.codes_compared:,} "
            f"codes and {report.accumulators_compared:,} accumulators compared, largest differences {gaps[0]} and "
            f"{gaps[1]}"
        )
    return replace(
        reports[-1],
        found=(*runs, *failures_of_file(differences)),
        file_differences=tuple(differences),
        notes=tuple(notes),
        seconds=sum(r.seconds for r in reports),
    )


def kernel_of(form: LayerForm, layer: Layer, part: int) -> Kernel:
    """One part's product as the attestation has it: both operands are integers, in a kernel or in numpy."""
    operands = ("uint8", f"int{form.memory_bits}")
    return Kernel(op=form.kernel, operands=operands, saturation=_saturation(form, layer, part))


def _saturation(form: LayerForm, layer: Layer, part: int) -> str:
    """Why sums of u8 x s8 pairs in int16 may not be exact, from the weights that are multiplied; or an empty string."""
    if not form.pairs:
        return ""
    largest = int(np.abs(kernel_weights(layer, part)[0].astype(np.int64)).max(initial=0))
    worst = 2 * form.pairs * layer.reach * largest
    return (
        "" if worst <= PAIR_LIMIT else f"unsafe: {form.pairs} pairs are summed in int16, up to {worst} > {PAIR_LIMIT}"
    )


def kernel_notes(forms: Mapping[str, Sequence[LayerForm]]) -> list[str]:
    """Layers that no kernel takes."""
    slow = {name: next(f.reason for f in parts if f.reason) for name, parts in forms.items() if _in_numpy(parts)}
    if not slow:
        return []
    name, reason = next(iter(slow.items()))
    return [
        f"{len(slow)} layers are multiplied in integers by numpy, for no kernel takes them: {name} ({reason}) first"
    ]


def _in_numpy(parts: Sequence[LayerForm]) -> bool:
    return any(form.reason for form in parts)
