"""The whole verification: parity, probes, edges, batches, outputs and the attestation of kernels."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dq_deploy.artifacts import with_files_beside
from dq_deploy.engines.base import Runner
from dq_deploy.errors import DqError, GuaranteeError, InputError, OptionError
from dq_deploy.graph.onnx_file import read_manifest
from dq_deploy.manifest.values import EngineManifest, ManifestLayer
from dq_deploy.models import build_denoiser, macs_of, quantizable_layers
from dq_deploy.numerics.arrays import Array
from dq_deploy.open_engine import GRAPH_TARGETS, RECORD_SUFFIXES
from dq_deploy.record import Layer, Record, content_sha256
from dq_deploy.verify.cost.quantization_error import quantization_error as measured
from dq_deploy.verify.cost.quantization_inputs import quantization_inputs
from dq_deploy.verify.file.findings import unrun_report, with_file
from dq_deploy.verify.file.same_file import TracedOnce, compare_file
from dq_deploy.verify.inputs import Batch, plan_batches
from dq_deploy.verify.layers.attestation import MISSING, Kernel
from dq_deploy.verify.onnx.float_twin import float32_twin, is_narrow, narrow_note
from dq_deploy.verify.onnx.instrument import ShippedGraph, run_all
from dq_deploy.verify.onnx.kernels import KernelGraph, read_kernels
from dq_deploy.verify.onnx.parity import Parity, ParityCheck
from dq_deploy.verify.onnx.probe import probe_layer
from dq_deploy.verify.onnx.tables import table_problems
from dq_deploy.verify.onnx.twin_products import graph_note, twin_products
from dq_deploy.verify.output.difference import (
    StepOutput,
    batch_difference,
    check_finite,
    compare_outputs,
    run_module,
    simulation,
    twin_outputs,
)
from dq_deploy.verify.output.float_source import recorded_float_model
from dq_deploy.verify.output.parting import lowest_parting
from dq_deploy.verify.path_inputs import path_batches
from dq_deploy.verify.report.findings import Findings, assembled_report, layer_report
from dq_deploy.verify.report.values import LayerReport, Report

if TYPE_CHECKING:
    import torch

    from dq_deploy.models import Denoiser, Macs

Progress = Callable[[str], None]


def _silent(_line: str) -> None:
    pass


def verify(
    record: Record,
    engine_path: str | Path,
    *,
    model: Denoiser | None = None,
    engine: str | None = None,
    steps: int = 5,
    inputs: int = 2,
    seed: int = 0,
    threads: int | None = None,
    isa: str | None = None,
    device: str | None = None,
    quantization_error: bool = False,
    progress: Progress = _silent,
    compare_with_record: bool = True,
    traced: TracedOnce | None = None,
) -> Report:
    """Prove that an engine computes what a record says, and in integers.

    Args:
        record: the quantized denoiser.
        engine_path: ONNX file exported from it, or the file of the record itself, which the native engine runs.
        model: the float model it was made from; adds simulation against float.
        engine: runtime; by default the one the manifest names.
        steps: step buckets that get a batch of their own, spread over all of them.
        inputs: samples in each such batch.
        seed: of the inputs.
        threads: threads of one run.
        isa: instruction set of the native engine; None for the best, `all` for each this CPU has.
        device: of the native engine: cpu, cuda, or None for a GPU where there is one that can run it.
        quantization_error: measure also what quantization costs against the float model, which is found by the
            record where none is given; a note says so where it is not there. No part of the verdict.
        progress: called with a line at each stage.
        compare_with_record: export the record again and compare the file with that. Without it only what runs is
            looked at, which is what shows a mistake of the exporter itself.
        traced: the record's, where several engines of one record are proven.

    Returns:
        The report; it never raises because of a difference.

    Raises:
        InputError: the engine was not exported from this record, or the model is another one.
        FileProblemError: the engine cannot be read.
        NonFiniteError: the engine's output is not finite, although the file is what its record makes.
    """
    start = time.perf_counter()
    if steps < 1 or inputs < 1:
        raise OptionError(f"steps and inputs are {steps} and {inputs}, expected at least 1")
    path = with_files_beside(Path(engine_path))
    if path.suffix in RECORD_SUFFIXES:
        from dq_deploy.verify.native.proof import ProofOptions, verify_native

        options = ProofOptions(
            steps=steps, inputs=inputs, seed=seed, progress=progress, compare_with_record=compare_with_record
        )
        report = verify_native(
            record, path, model=model, engine=engine, threads=threads, isa=isa, device=device, options=options
        )
        return _with_quantization_error(report, record, model, progress) if quantization_error else report
    if isa is not None or device is not None:
        raise OptionError(
            f"isa {isa} and device {device} for {path}, expected none: only the native engine has a choice"
        )
    manifest = read_manifest(path)
    _check_belongs(record, manifest, path, model)
    traced = traced or TracedOnce(record)
    same = None
    if compare_with_record:
        progress("exporting the record again, and comparing the file with that")
        same = compare_file(path, manifest, traced)
    options = GraphOptions(
        model=model, engine=engine, steps=steps, inputs=inputs, seed=seed, threads=threads, progress=progress
    )
    try:
        report = _proof_or_twin(record, path, manifest, options, traced, start)
    except Exception as error:  # a damaged file makes whoever reads it raise what they like
        if same is None or not same.differences:
            raise
        report = unrun_report(record, path, manifest, error, seed=seed, start=start)
    report = with_file(report, same)
    return _with_quantization_error(report, record, model, progress) if quantization_error else report


@dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """As of `verify`."""

    model: Denoiser | None
    engine: str | None
    steps: int
    inputs: int
    seed: int
    threads: int | None
    progress: Progress


def _proof_or_twin(
    record: Record, path: Path, manifest: EngineManifest, options: GraphOptions, traced: TracedOnce, start: float
) -> Report:
    """The proof of a file, or of its float32 form where its float part is narrower."""
    if not (manifest.target in GRAPH_TARGETS and is_narrow(manifest)):
        return _proof(record, path, manifest, options, traced, start)
    with tempfile.TemporaryDirectory(prefix="dq-verify-") as folder:
        options.progress("exporting the float32 form of the graph, and comparing the two")
        twin, difference = float32_twin(record, path, manifest, Path(folder), traced=traced())
        report = _proof(record, twin, read_manifest(twin), options, traced, start)
    failures = (*report.failures, difference) if difference else report.failures
    return replace(report, engine=path.name, failures=failures, notes=(narrow_note(manifest), *report.notes))


def _proof(
    record: Record, path: Path, manifest: EngineManifest, options: GraphOptions, traced: TracedOnce, start: float
) -> Report:
    """The proof of one file as it lies."""
    from dq_deploy.verify.output.float_replay import compare_float_paths  # loads torch

    graph_only = manifest.target in GRAPH_TARGETS
    runtime = options.engine or ("onnxruntime" if graph_only else manifest.target)
    entries = {entry.name: entry for entry in manifest.layers}
    mixed = not manifest.single_step_batch
    blank = build_denoiser(record.family, record.model_config)
    macs = macs_of(blank, record.model_config)
    batches = plan_batches(record, steps=options.steps, inputs=options.inputs, mixed=mixed, seed=options.seed)
    runs = _Runs(batches=batches, paths=path_batches(record, mixed=mixed, seed=options.seed))
    with tempfile.TemporaryDirectory(prefix="dq-verify-") as folder:
        twins = twin_products(path) if graph_only else ()
        shipped = ShippedGraph(
            path, Path(folder), engine=runtime, threads=options.threads, optimize=not graph_only, twins=twins
        )
        graph, batch_note = _run(shipped, manifest.outputs[0].name, runs, options.progress)
        parity = _compared(shipped, record, entries, graph, runs, options, blank, mixed=mixed)
        options.progress("comparing outputs with the simulation")
        # a faulty engine differs from its twin anyway
        fast = manifest.mode == "fast"  # where no accumulator can be read
        sound = not any(t.first or (t.problems and not fast) for t in parity.layers.values())
        twin = traced if sound else None
        steps_out, output_notes = _outputs(shipped, record, manifest, batches, runs.finals, options.model, twin)
        parting = lowest_parting(record, batches, parity.kept, runs.finals, steps_out, requantized=fast)
        options.progress(f"comparing the float operations between the layers on {len(runs.all)} batches")
        in_float = [name for name, entry in entries.items() if not entry.integer]
        float_path, why = compare_float_paths(record, runs.all, parity.kept, runs.finals, in_float=in_float)
        layers = _layer_reports(shipped, record, entries, graph, parity, macs)
        tables = table_problems(shipped, record, blank)
    findings = Findings(
        parity=parity,
        layers=layers,
        manifest=manifest,
        macs=macs,
        steps_out=steps_out,
        batch_note=batch_note,
        float_path=float_path,
        float_path_unknown=why,
        tables=tables,
        parting=parting,
    )
    notes = [graph_note(manifest.target), *output_notes] if graph_only else output_notes
    more = {"steps": options.steps, "seed": options.seed, "runtime": runtime, "start": start}
    return assembled_report(path, record, findings, batches, notes=notes, **more)


@dataclass(kw_only=True)
class _Runs:
    """What the shipped engine is run with, and what it gave.

    Attributes:
        batches: whose integer layers are compared.
        paths: for the float operations alone.
        outputs: of both, in this order.
        finals: the denoiser's output of each.
    """

    batches: list[Batch]
    paths: list[Batch]
    outputs: list[dict[str, Array]] = field(default_factory=list)
    finals: list[Array] = field(default_factory=list)

    @property
    def all(self) -> list[Batch]:
        """Both."""
        return [*self.batches, *self.paths]


def _run(shipped: ShippedGraph, output: str, runs: _Runs, progress: Progress) -> tuple[KernelGraph, str | None]:
    """Run the file as it lies, and read which kernels ran.

    Returns:
        The kernels, and how a batch of mixed steps differs from its samples run alone.

    Raises:
        GuaranteeError: the engine has another output than its manifest says.
        NonFiniteError: an output is not finite.
    """
    progress("running the shipped engine" if shipped.optimize else "running the graph on ONNX Runtime")
    optimized = shipped.scratch(".optimized.onnx")
    with shipped.open(shipped.path, optimized=optimized) as runner:
        _check_outputs(runner, output)
        runs.outputs = [run_all(runner, batch.feeds) for batch in runs.all]
        check_finite(runs.outputs)
        batch_note = _batch_note(shipped, runner, runs.batches, runs.outputs)
    runs.finals = [values[output] for values in runs.outputs]
    return read_kernels(shipped, optimized), batch_note


def _compared(
    shipped: ShippedGraph,
    record: Record,
    entries: Mapping[str, ManifestLayer],
    graph: KernelGraph,
    runs: _Runs,
    options: GraphOptions,
    blank: torch.nn.Module,
    *,
    mixed: bool,
) -> Parity:
    """Every layer against the numerics, in the running engine and with extreme inputs."""
    sites = {site.name: site for site in quantizable_layers(blank, record.model_config)}
    check = ParityCheck(shipped, record, entries, graph, runs.batches, sites, runs.paths)
    parity = check.run(runs.outputs, options.progress)
    options.progress("probing every layer with extreme inputs at every step")
    for name, tally in parity.layers.items():
        if tally.steps:
            probe_layer(shipped, record, name, entries[name], parity.shapes, tally, seed=options.seed, mixed=mixed)
    return parity


def _layer_reports(
    shipped: ShippedGraph,
    record: Record,
    entries: Mapping[str, ManifestLayer],
    graph: KernelGraph,
    parity: Parity,
    macs: Macs,
) -> tuple[LayerReport, ...]:
    return tuple(
        layer_report(
            layer,
            entries.get(name),
            parity.layers[name],
            _kernels(graph, entries.get(name), layer),
            _requested(shipped, entries.get(name)),
            macs,
        )
        for name, layer in record.layers.items()
    )


def _with_quantization_error(report: Report, record: Record, model: Denoiser | None, progress: Progress) -> Report:
    """The report with what quantization costs, or a note that says why it was not measured."""
    start = time.perf_counter()
    why = ""
    if model is None:
        model, why = recorded_float_model(record)
    if model is None:
        return replace(report, notes=(*report.notes, f"quantization error was not measured: {why}"))
    progress("measuring the quantization error against the float model")
    try:
        inputs, words = quantization_inputs(record, model.module, seed=report.seed)
        found = measured(
            record, model.module, inputs, requantized=report.mode == "fast", words=words, source=model.source
        )
    except DqError as error:
        return replace(report, notes=(*report.notes, f"quantization error was not measured: {error}"))
    seconds = time.perf_counter() - start
    return replace(report, quantization=replace(found, seconds=seconds), seconds=report.seconds + seconds)


def _check_belongs(record: Record, manifest: EngineManifest, path: Path, model: Denoiser | None) -> None:
    mine = content_sha256(record)
    if manifest.record_sha256 != mine:
        raise InputError(
            f"engine {path} was exported from the record {str(manifest.record_sha256)[:12]}, the checkpoint is "
            f"{mine[:12]}; give the checkpoint it was made from or export again"
        )
    source = record.provenance.get("source_sha256")
    if model is not None and source and model.source_sha256 != source:
        raise InputError(
            f"model {model.source} has the hash {model.source_sha256[:12]}, the checkpoint was made from "
            f"{str(source)[:12]}; give the model it was quantized from"
        )


def _check_outputs(runner: Runner, name: str) -> None:
    if name not in {spec.name for spec in runner.outputs}:
        got = ", ".join(spec.name for spec in runner.outputs)
        raise GuaranteeError(f"engine returns {got}, its manifest says {name}; export it again")


def _batch_note(
    shipped: ShippedGraph, runner: Runner, batches: Sequence[Batch], outputs: Sequence[Mapping[str, Array]]
) -> str | None:
    """How a batch of mixed steps differs from its samples run alone; None where no batch is mixed."""
    at = next((i for i, batch in enumerate(batches) if batch.kind == "mixed"), None)
    return None if at is None else batch_difference(shipped, runner, batches[at], outputs[at])


def _kernels(graph: KernelGraph, entry: ManifestLayer | None, layer: Layer) -> tuple[Kernel, ...]:
    parts = () if entry is None else entry.parts or ()
    if not parts:
        return (MISSING,) * len(layer.parts)
    return tuple(graph.kernel(part, layer, min(i, len(layer.parts) - 1)) for i, part in enumerate(parts))


def _requested(shipped: ShippedGraph, entry: ManifestLayer | None) -> tuple[str, ...]:
    found = []
    for part in () if entry is None else entry.parts or ():
        node = shipped.node(part.node or "", part.accumulator or "")
        found.append("missing" if node is None else f"{node.domain}.{node.op_type}" if node.domain else node.op_type)
    return tuple(found)


def _outputs(
    shipped: ShippedGraph,
    record: Record,
    manifest: EngineManifest,
    batches: Sequence[Batch],
    finals: Sequence[Array],
    model: Denoiser | None,
    traced: TracedOnce | None,
) -> tuple[list[StepOutput], list[str]]:
    """Errors of the output by step; without a trace there is no twin."""
    fast = manifest.mode == "fast"
    notes = []
    try:
        trained = run_module(simulation(record, requantized=fast), batches)
    except DqError as error:
        return [], [f"output was not compared with the training simulation: {error}"]
    twin = None
    if traced is not None:
        try:
            mode, target = manifest.mode, manifest.target
            twin = twin_outputs(shipped, record, batches, mode=mode, target=target, traced=traced())
        except DqError as error:
            notes.append(f"output was compared with the training simulation only: {error}")
    floats = None if model is None else run_module(model.module, batches)
    return compare_outputs(record, batches, finals[: len(batches)], trained, twin, floats), notes
