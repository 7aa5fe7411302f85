"""What provers share that can see inside an engine while it runs: inputs, simulation, replay, report."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dq_deploy.engines.base import Runner
from dq_deploy.errors import DqError, InputError, OptionError
from dq_deploy.models import LayerSite, build_denoiser, call_of_record, macs_of, quantizable_layers
from dq_deploy.record import Call, Record
from dq_deploy.verify.file.findings import with_file
from dq_deploy.verify.file.same_file import SameFile
from dq_deploy.verify.inputs import Batch, Runs, plan_batches, run_all
from dq_deploy.verify.layers.comparison import LayerSubject
from dq_deploy.verify.other_sizes import OtherSizes, other_sizes
from dq_deploy.verify.output.difference import batch_difference, check_finite, compare_outputs, run_module, simulation
from dq_deploy.verify.output.float_path import FloatPath, FloatTypes
from dq_deploy.verify.output.outputs import Outputs, TwinOutputs
from dq_deploy.verify.output.parting import lowest_parting
from dq_deploy.verify.path_inputs import path_batches
from dq_deploy.verify.prover import Evidence, Prover, Seen, Subject
from dq_deploy.verify.report.findings import Claims, Findings, assembled_report
from dq_deploy.verify.report.values import LayerReport, Report
from dq_deploy.verify.steps import LeftOut

if TYPE_CHECKING:
    import torch

    from dq_deploy.models import Denoiser, Macs
    from dq_deploy.verify.output.float_replay import AttentionsOf

Layers = tuple[LayerReport, ...]


class InsideProver(Prover[Layers, Report]):
    """Proves an engine whose codes and accumulators can be read while it runs.

    Attributes:
        record: the quantized denoiser.
        mixed: whether a batch may hold samples of several steps.
        requantized: whether convolutions hand on the declared 8-bit outputs.
        folder: scratch folder, once the engine is opened.
    """

    mixed = True
    requantized = False
    folder: Path

    def __init__(self, subject: Subject) -> None:
        """Take the engine and the record it is held against."""
        super().__init__(subject)
        if subject.record is None:
            raise OptionError(f"engine {subject.path} is compared with its quantized model, which was not given")
        self.record: Record = subject.record
        self.options = subject.options

    @cached_property
    def blank(self) -> torch.nn.Module:
        """The denoiser without its values, on the device `meta`."""
        return build_denoiser(self.record.family, self.record.model_config, device="meta")

    @cached_property
    def call(self) -> Call:
        """How the denoiser is called."""
        return call_of_record(self.record)

    @cached_property
    def macs(self) -> Macs:
        """Of the denoiser."""
        return macs_of(self.blank, self.call)

    @abstractmethod
    def running(self) -> AbstractContextManager[Runner]:
        """The engine as it usually runs."""

    @abstractmethod
    def first_batch_dependent(self, batch: Batch, index: int) -> str:
        """The first thing in the engine that a sample's neighbours change, in words."""

    @abstractmethod
    def twin(self, seen: Seen) -> TwinOutputs:
        """Outputs of the record simulated inside the engine's own float operations."""

    @abstractmethod
    def claims(self) -> Claims:
        """What the engine says of itself."""

    @abstractmethod
    def runtime_text(self) -> str:
        """Engine, version and what else decides how it runs, in words."""

    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing of this kind of engine."""

    def layers_in_float(self) -> Sequence[str]:
        """Layers of the record that are float operations in this engine."""
        return ()

    def float_type(self) -> str:
        """Of the engine's float operations."""
        return "float32"

    def attentions_in_codes(self) -> AttentionsOf | None:
        """What gives the attentions of a batch that run in codes; None where none do."""
        return None

    def names_in_codes(self) -> Collection[str]:
        """Module paths of those attentions."""
        return ()

    def attention_type(self) -> str:
        """What attention's two products take."""
        return self.float_type()

    def table_problems(self) -> tuple[str, ...]:
        """What is wrong with large tables, in words."""
        return ()

    def failures(self, seen: Seen) -> tuple[str, ...]:
        """What else is wrong, in words."""
        return ()

    def run(self) -> Runs:
        """Run the inputs, and one batch of mixed steps sample by sample.

        Raises:
            NonFiniteError: an output is not finite.
        """
        options = self.options
        paths = path_batches(self.record, mixed=self.mixed, seed=options.seed)
        with self.running() as runner:
            others = self._other_sizes(runner)
            batches = plan_batches(
                self.record,
                steps=options.steps,
                inputs=options.inputs,
                mixed=self.mixed,
                seed=options.seed,
                others=others.sizes,
            )
            outputs = [run_all(runner, batch.feeds) for batch in (*batches, *paths)]
            check_finite(outputs)
            at = next((i for i, batch in enumerate(batches) if batch.kind == "mixed"), None)
            difference = None
            if at is not None:
                difference = batch_difference(runner, batches[at], outputs[at], self.first_batch_dependent)
            names = self.output_names(runner)
        return Runs(
            batches=batches,
            paths=paths,
            names=names,
            outputs=outputs,
            batch_difference=difference,
            sizes_note=others.note,
        )

    def _other_sizes(self, runner: Runner) -> OtherSizes:
        """Those asked for, or smaller ones."""
        if self.options.sizes:
            asked = runner.sizes_with(self.options.sizes)
            return OtherSizes(sizes=({**self.call.sizes, **asked},))
        return other_sizes(self.call, runner, self.blank)

    def output_names(self, runner: Runner) -> tuple[str, ...]:
        """Names of the denoiser's outputs, in order."""
        return tuple(spec.name for spec in runner.outputs)

    def layer_subject(self, runs: Runs) -> LayerSubject:
        """What the comparison of layers is about."""
        sites: dict[str, LayerSite] = {site.name: site for site in quantizable_layers(self.blank, self.call)}
        return LayerSubject(
            record=self.record, runs=runs, sites=sites, folder=self.folder, progress=self.options.progress
        )

    def compare_outputs(self, seen: Seen | LeftOut) -> Outputs | LeftOut:
        """Against the twin, the training simulation and the float model."""
        if isinstance(seen, LeftOut):
            return seen
        self.options.progress("comparing outputs with the simulation")
        runs, record, model = seen.runs, self.record, self.options.model
        twin = self.twin(seen)
        failures = (twin.failure,) if twin.failure else ()
        try:
            trained = run_module(simulation(record, requantized=self.requantized), runs.batches)
        except DqError as error:
            note = f"output was not compared with the training simulation: {error}"
            return Outputs(notes=(note,), failures=failures)
        floats = None if model is None else run_module(model.module, runs.batches, self.call.constants)
        mine = runs.finals[: len(runs.batches)]
        steps = compare_outputs(record, runs.batches, mine, trained, twin.outputs, floats)
        kept = seen.results.kept
        parting = lowest_parting(record, runs.batches, kept, runs.finals, steps, requantized=self.requantized)
        notes = (f"output was compared with the training simulation only: {twin.unknown}",) if twin.unknown else ()
        return Outputs(steps=tuple(steps), notes=notes, failures=failures, parting=parting)

    def replay_float_operations(self, seen: Seen) -> FloatPath | LeftOut:
        """Against the float module in float64 around the engine's layers."""
        from dq_deploy.verify.output.float_replay import compare_float_paths  # loads torch

        runs, kept = seen.runs, seen.results.kept
        return compare_float_paths(
            self.record,
            runs.all,
            kept,
            runs.finals,
            in_float=self.layers_in_float(),
            types=FloatTypes(operations=self.float_type(), attention=self.attention_type()),
            attentions=self.attentions_in_codes(),
        )

    def report(self, evidence: Evidence[Layers]) -> Report:
        """The report of what runs, and of the comparison with the record."""
        seen, outputs = evidence.seen, evidence.outputs
        assert isinstance(seen, Seen)  # of `run`
        assert isinstance(outputs, Outputs)  # of `compare_outputs`
        findings = Findings(
            record=self.record,
            engine=self.subject.path.name,
            claims=self.claims(),
            runtime=self.runtime_text(),
            macs=self.macs,
            runs=seen.runs,
            results=seen.results,
            layers=evidence.kernels,
            outputs=outputs,
            float_path=evidence.float_operations,
            tables=self.table_problems(),
            notes=self.notes(),
            failures=self.failures(seen),
            steps=self.options.steps,
            seed=self.options.seed,
            seconds=evidence.seconds,
            left_out=evidence.left_out,
            in_codes=self.names_in_codes(),
        )
        report = assembled_report(findings)
        for compared in (evidence.file, evidence.memory):
            if isinstance(compared, SameFile):
                report = with_file(report, compared)
        return report


def check_model(record: Record, model: Denoiser | None) -> None:
    """Refuse a float model that a record was not made from.

    Raises:
        InputError: naming the two hashes.
    """
    source = record.provenance.get("source_sha256")
    if model is not None and source and model.source_sha256 != source:
        raise InputError(
            f"model {model.source} has the hash {model.source_sha256[:12]}, the checkpoint was made from "
            f"{str(source)[:12]}; give the model it was quantized from"
        )
