"""The proof of an exported ONNX file: in ONNX Runtime, in OpenVINO, or of the graph that TensorRT builds from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from dq_deploy.engines.base import Runner
from dq_deploy.errors import DqError, GuaranteeError, InputError, OptionError
from dq_deploy.graph.onnx_file import read_manifest
from dq_deploy.manifest.values import ManifestLayer, ManifestPart
from dq_deploy.open_engine import GRAPH_TARGETS, graph_engine
from dq_deploy.record import Layer, content_sha256
from dq_deploy.verify.file.findings import unrun_report, with_file
from dq_deploy.verify.file.same_file import SameFile, TracedOnce, compare_file
from dq_deploy.verify.inputs import Batch, Finals, Runs, run_all
from dq_deploy.verify.inside import InsideProver, Layers, check_model
from dq_deploy.verify.layers.attestation import MISSING, Kernel
from dq_deploy.verify.layers.comparison import LayerResults
from dq_deploy.verify.onnx.float32_form import float32_form, is_narrow, narrow_note
from dq_deploy.verify.onnx.instrument import ShippedGraph
from dq_deploy.verify.onnx.integer_products import graph_note, integer_products
from dq_deploy.verify.onnx.kernels import KernelGraph, read_kernels
from dq_deploy.verify.onnx.layers import GraphLayers, first_batch_dependent
from dq_deploy.verify.onnx.probe import Probing, probe_layer
from dq_deploy.verify.onnx.tables import table_problems
from dq_deploy.verify.output.outputs import TwinOutputs
from dq_deploy.verify.prover import Seen, Subject
from dq_deploy.verify.report.findings import Claims, LayerEvidence, layer_report
from dq_deploy.verify.report.values import Report
from dq_deploy.verify.steps import LeftOut, Reason, Step


class OnnxProver(InsideProver):
    """Proves an ONNX file as it lies, or its float32 form where its float operations are in a narrower type."""

    @classmethod
    def takes(cls, path: Path) -> bool:
        """Any file that is no other prover's."""
        return True

    def __init__(self, subject: Subject) -> None:
        """Read the manifest.

        Raises:
            OptionError: an option that only the native engine has, or an engine that runs no ONNX files.
            InputError: the file was not exported from this record, or the model is another one.
            FileProblemError: the file cannot be read.
        """
        super().__init__(subject)
        options, path = subject.options, subject.path
        for name, value in (("isa", options.isa), ("device", options.device), ("attention", options.attention)):
            if value is not None:
                raise OptionError(
                    f"{name} is {value!r} for {path}, expected none: only the native engine has a choice; leave it out"
                )
        self.shipped_manifest = read_manifest(path)
        self._check_belongs()
        self.traced = subject.traced or TracedOnce(self.record)
        self.graph_only = self.shipped_manifest.target in GRAPH_TARGETS
        asked = "onnxruntime" if options.engine is None and self.graph_only else options.engine
        self.runtime = graph_engine(path, asked, self.shipped_manifest)
        self.narrow = self.graph_only and is_narrow(self.shipped_manifest)
        self._form_difference = ""

    def _check_belongs(self) -> None:
        mine, said = content_sha256(self.record), self.shipped_manifest.record_sha256
        if said != mine:
            raise InputError(
                f"engine {self.subject.path} was exported from the record {str(said)[:12]}, the checkpoint is "
                f"{mine[:12]}; give the checkpoint it was made from or export again"
            )
        check_model(self.record, self.options.model)

    def compare_file(self) -> SameFile | LeftOut:
        """Export the record again, and compare node by node and constant by constant."""
        self.options.progress("exporting the record again, and comparing the file with that")
        return compare_file(self.subject.path, self.shipped_manifest, self.traced)

    @contextmanager
    def opened(self, folder: Path) -> Iterator[None]:
        """Read the graph that is proven."""
        path, self.manifest, self.folder = self.subject.path, self.shipped_manifest, folder
        if self.narrow:
            self.options.progress("exporting the float32 form of the graph, and comparing the two")
            path, self._form_difference = float32_form(
                self.record, path, self.shipped_manifest, folder, traced=self.traced()
            )
            self.manifest = read_manifest(path)
        self.entries = {entry.name: entry for entry in self.manifest.layers}
        self.mixed = not self.manifest.single_step_batch
        self.requantized = self.manifest.mode == "fast"
        inner = folder / "copies"
        inner.mkdir()
        self.shipped = ShippedGraph(
            path,
            inner,
            engine=self.runtime,
            threads=self.options.threads,
            optimize=not self.graph_only,
            products=integer_products(path) if self.graph_only else (),
        )
        yield

    @contextmanager
    def running(self) -> Iterator[Runner]:
        """The file as it lies; behind it the kernels are known.

        Raises:
            GuaranteeError: the engine has another output than its manifest says.
        """
        self.options.progress("running the graph on ONNX Runtime" if self.graph_only else "running the shipped engine")
        optimized = self.shipped.scratch(".optimized.onnx")
        with self.shipped.open(self.shipped.path, optimized=optimized) as runner:
            names, returned = self.output_names(runner), [spec.name for spec in runner.outputs]
            if not set(names) <= set(returned):
                raise GuaranteeError(
                    f"engine returns {', '.join(returned)}, its manifest says {', '.join(names)}; export it again"
                )
            yield runner
        self.graph: KernelGraph = read_kernels(self.shipped, optimized)

    def output_names(self, runner: Runner) -> tuple[str, ...]:
        """As the manifest says."""
        return tuple(entry.name for entry in self.manifest.outputs)

    def first_batch_dependent(self, batch: Batch, index: int) -> str:
        """The first node whose output for a sample depends on the rest of its batch."""
        return first_batch_dependent(self.shipped, batch, index)

    def compare_layers(self, runs: Runs) -> LayerResults:
        """Every layer in copies that show its inner tensors."""
        layers = GraphLayers(self.layer_subject(runs), self.shipped, self.entries, self.graph)
        results = layers.run()
        self.shapes = layers.shapes
        return results

    def probe_layers(self, seen: Seen) -> LeftOut | None:
        """Every layer's piece of the graph with extreme inputs."""
        probing = Probing(
            shipped=self.shipped, record=self.record, shapes=self.shapes, seed=self.options.seed, mixed=self.mixed
        )
        for name, tally in seen.results.layers.items():
            if tally.steps:
                probe_layer(probing, name, self.entries[name], tally)
        return None

    def twin(self, seen: Seen) -> TwinOutputs:
        """The engine's own float graph with its integer layers in float; none where the engine is at fault anyway."""
        layers = seen.results.layers.values()
        # in mode fast no accumulator can be read, which is a problem of each layer and no fault
        if any(t.first or (t.problems and not self.requantized) for t in layers):
            return TwinOutputs(outputs=None)
        try:
            return TwinOutputs(outputs=self._twin_outputs(seen.runs.batches))
        except DqError as error:
            return TwinOutputs(outputs=None, unknown=str(error))

    def _twin_outputs(self, batches: list[Batch]) -> list[Finals]:
        from dq_deploy.targets import simulation_graph

        path = self.shipped.scratch(".onnx")
        mode, target = self.manifest.mode, self.manifest.target
        simulation_graph(self.record, path, mode=mode, target=target, traced=self.traced())
        with self.shipped.open(path) as runner:
            return [tuple(run_all(runner, batch.feeds).values()) for batch in batches]

    def layers_in_float(self) -> list[str]:
        """Layers that the manifest says are float."""
        return [name for name, entry in self.entries.items() if not entry.integer]

    def attest_kernels(self, seen: Seen | LeftOut) -> Layers:
        """What the engine's own optimized graph runs for each layer, beside what was compared of it."""
        assert isinstance(seen, Seen)  # of `run`
        layers = self.record.layers
        return tuple(
            layer_report(layers[name], self._known(seen, name, self.entries.get(name)), self.macs) for name in layers
        )

    def _known(self, seen: Seen, name: str, entry: ManifestLayer | None) -> LayerEvidence:
        return LayerEvidence(
            tally=seen.results.layers[name],
            kernels=self._kernels(entry, self.record.layers[name]),
            requested=self._requested(entry),
            asked_integer=entry is not None and entry.integer,
            form="" if entry is None else entry.form or "",
            reason="" if entry is None else entry.reason or "",
        )

    def compare_memory(self) -> LeftOut:
        """Not done: the engine is made from the file."""
        return LeftOut(step=Step.MEMORY, reason=Reason.IS_THE_FILE)

    def claims(self) -> Claims:
        """Of the manifest."""
        return Claims(
            target=self.manifest.target,
            mode=self.manifest.mode,
            record_sha256=str(self.manifest.record_sha256),
            macs=self.manifest.macs,
        )

    def runtime_text(self) -> str:
        """Engine and version."""
        try:
            return f"{self.runtime} {metadata.version(self.runtime)}"
        except metadata.PackageNotFoundError:
            return f"{self.runtime} of unknown version"

    def notes(self) -> tuple[str, ...]:
        """What a comparison of a graph shows and what it does not."""
        narrow = (narrow_note(self.shipped_manifest),) if self.narrow else ()
        return (*narrow, *((graph_note(self.manifest.target),) if self.graph_only else ()))

    def table_problems(self) -> tuple[str, ...]:
        """Of embedding tables that are compared as a whole."""
        return table_problems(self.shipped, self.record, self.blank)

    def failures(self, seen: Seen) -> tuple[str, ...]:
        """What the file differs in from its float32 form besides Casts and float types."""
        return (self._form_difference,) if self._form_difference else ()

    def report_of_unrun(self, file: SameFile, error: Exception, seconds: float) -> Report:
        """Nothing in the file was compared by running it."""
        report = unrun_report(
            self.record, self.subject.path, self.shipped_manifest, error, seed=self.options.seed, seconds=seconds
        )
        return with_file(report, file)

    def _kernels(self, entry: ManifestLayer | None, layer: Layer) -> tuple[Kernel, ...]:
        parts = _parts(entry)
        if not parts:
            return (MISSING,) * len(layer.parts)
        last = len(layer.parts) - 1
        return tuple(self.graph.kernel(part, layer, min(i, last)) for i, part in enumerate(parts))

    def _requested(self, entry: ManifestLayer | None) -> tuple[str, ...]:
        found = []
        for part in _parts(entry):
            node = self.shipped.node(part.node or "", part.accumulator or "")
            name = "missing" if node is None else f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            found.append(name)
        return tuple(found)


def _parts(entry: ManifestLayer | None) -> tuple[ManifestPart, ...]:
    """The parts of a layer; none where the manifest does not name it."""
    return () if entry is None else entry.parts or ()
