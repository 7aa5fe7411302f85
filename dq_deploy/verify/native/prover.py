"""The proof of the native engine: what `verify` does for a record that is given as the engine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.engines.base import Runner
from dq_deploy.engines.capabilities import LayerForm
from dq_deploy.errors import DqError, InputError, MissingDependencyError
from dq_deploy.manifest.values import EngineManifest, ManifestLayer
from dq_deploy.models import Macs, build_denoiser, macs_of, quantizable_layers
from dq_deploy.native.program.layer_constants import kernel_weights
from dq_deploy.native.runner import NativeRunner
from dq_deploy.numerics.arrays import Array
from dq_deploy.open_engine import open_engine
from dq_deploy.record import Layer, Record, content_sha256
from dq_deploy.targets.manifest import manifest_macs
from dq_deploy.verify.file.findings import with_file
from dq_deploy.verify.file.same_file import SameFile
from dq_deploy.verify.inputs import Batch, plan_batches
from dq_deploy.verify.layers.attestation import MISSING, PAIR_LIMIT, Kernel
from dq_deploy.verify.native.constants import native_differences
from dq_deploy.verify.native.ops import different_bits
from dq_deploy.verify.native.parity import NativeParity, batch_difference
from dq_deploy.verify.native.twin import Twin
from dq_deploy.verify.onnx.parity import Parity
from dq_deploy.verify.output.difference import StepOutput, check_finite, compare_outputs, run_module, simulation
from dq_deploy.verify.output.parting import lowest_parting
from dq_deploy.verify.path_inputs import path_batches
from dq_deploy.verify.report.findings import Findings, assembled_report, layer_report
from dq_deploy.verify.report.values import LayerReport, Report, failure_of_file

if TYPE_CHECKING:
    from dq_deploy.models import Denoiser

Progress = Callable[[str], None]

ON_GPU = (
    "on a GPU layers met the denoiser's inputs alone, no extreme ones, and the output was compared with the training "
    "simulation, not with one inside the engine's own float operations"
)

EVERY_ISA = "all"
"""Stands for each instruction set this CPU has."""


@dataclass(frozen=True, kw_only=True)
class ProofOptions:
    """As of `verify`."""

    steps: int
    inputs: int
    seed: int
    progress: Progress
    compare_with_record: bool = True


def verify_native(
    record: Record,
    path: Path,
    *,
    model: Denoiser | None,
    engine: str | None,
    threads: int | None,
    isa: str | None,
    device: str | None,
    options: ProofOptions,
) -> Report:
    """Open a record as the native engine and prove that it computes another reading of that record.

    Args:
        record: what the engine is held against.
        path: the record that runs.
        model: the float model it was made from, or None.
        engine: `native` or None.
        threads: of one run.
        isa: instruction set; None for the best, `all` for each this CPU has.
        device: as of `open_engine`.
        options: how much is looked at.

    Returns:
        The report; of several instruction sets that of the best, with the failures of all.

    Raises:
        InputError: another record, or another model.
        MissingDependencyError: the CPU kernels were not built.
    """
    known: Sequence[str | None] = (isa,)
    if isa == EVERY_ISA:
        known = _isas_of_this_cpu()
    reports = []
    for name in known:
        start = time.perf_counter()
        with open_engine(path, engine=engine, threads=threads, isa=name, device=device, finite_check=False) as runner:
            check_same_record(record, runner, path, model)
            options.progress(f"running the engine {runtime_text(runner)}")
            reports.append(prove_runner(record, runner, path, model=model, options=options, start=start))
    return reports[-1] if len(reports) == 1 else _together(reports, [str(name) for name in known])


def _isas_of_this_cpu() -> tuple[str, ...]:
    from dq_kernels.cpu.library import KernelsMissingError, known_isas

    try:
        return known_isas()
    except KernelsMissingError as error:
        raise MissingDependencyError(str(error)) from error


def _together(reports: Sequence[Report], names: Sequence[str]) -> Report:
    """The last report, with the failures and notes of the others behind the name of their instruction set."""
    failures = [f"{n}: {text}" for r, n in zip(reports, names, strict=True) for text in r.run_failures]
    differences = [f"{n}: {text}" for r, n in zip(reports, names, strict=True) for text in r.file_differences]
    notes = list(reports[-1].notes)
    for report, name in zip(reports[:-1], names[:-1], strict=True):
        gaps = report.max_code_difference, report.max_accumulator_difference
        verdict = "exact" if report.exact else f"not exact, {len(report.failures)} findings"
        notes.append(
            f"{name}: {verdict}; {report.layers_compared} of {report.layers_total} layers, {report.codes_compared:,} "
            f"codes and {report.accumulators_compared:,} accumulators compared, largest differences {gaps[0]} and "
            f"{gaps[1]}"
        )
    return replace(
        reports[-1],
        failures=(*failures, *(failure_of_file(text) for text in differences)),
        file_differences=tuple(differences),
        notes=tuple(notes),
        seconds=sum(r.seconds for r in reports),
    )


def check_same_record(record: Record, runner: Runner, path: Path, model: Denoiser | None) -> None:
    """Refuse an engine that runs another record, and a float model that neither was made from.

    Raises:
        InputError: naming the two hashes.
    """
    mine, other = content_sha256(record), str(runner.manifest and runner.manifest.record_sha256)
    if mine != other:
        raise InputError(
            f"engine {path} is the record {other[:12]}, the checkpoint is {mine[:12]}; give the same record twice, or "
            "leave `record` out"
        )
    source = record.provenance.get("source_sha256")
    if model is not None and source and model.source_sha256 != source:
        raise InputError(
            f"model {model.source} has the hash {model.source_sha256[:12]}, the checkpoint was made from "
            f"{str(source)[:12]}; give the model it was quantized from"
        )


def prove_runner(
    record: Record,
    runner: Any,
    path: Path,
    *,
    model: Denoiser | None = None,
    options: ProofOptions,
    start: float | None = None,
) -> Report:
    """Prove an opened engine; whether it says that it runs this record is not asked.

    Args:
        record: what it is held against.
        runner: the engine, a `NativeRunner` or a `NativeCudaRunner`, opened without a finite check.
        path: for the report.
        model: the float model, or None.
        options: how much is looked at.
        start: when it began, by `time.perf_counter`.
    """
    start = time.perf_counter() if start is None else start
    with tempfile.TemporaryDirectory(prefix="dq-verify-") as folder:
        report = _proven(record, runner, path, model, options, start, Path(folder))
    if not options.compare_with_record:
        return report
    options.progress("comparing the program and its constants with what the record makes")
    return with_file(report, SameFile(differences=tuple(native_differences(record, runner))))


def _proven(
    record: Record, runner: Any, path: Path, model: Denoiser | None, options: ProofOptions, start: float, folder: Path
) -> Report:
    """What runs, against the record."""
    from dq_deploy.verify.output.float_replay import compare_float_paths  # loads torch

    blank = build_denoiser(record.family, record.model_config)
    sites = {site.name: site for site in quantizable_layers(blank, record.model_config)}
    macs = macs_of(blank, record.model_config)
    batches = plan_batches(record, steps=options.steps, inputs=options.inputs, mixed=True, seed=options.seed)
    paths = path_batches(record, mixed=True, seed=options.seed)
    outputs = [runner.run(batch.feeds) for batch in (*batches, *paths)]
    check_finite(outputs)
    mixed = next(i for i, batch in enumerate(batches) if batch.kind == "mixed")
    batch_note = batch_difference(runner, batches[mixed], outputs[mixed])
    check = NativeParity(runner, record, batches, sites, folder=folder, paths=paths)
    parity = check.run(outputs, seed=options.seed, progress=options.progress)
    options.progress("comparing outputs with the simulation")
    finals = [output[runner.outputs[0].name] for output in outputs]
    compared = _outputs(runner, record, batches, finals[: len(batches)], model, parity)
    dtype = getattr(runner.executor, "dtype", "float32")
    parting = lowest_parting(record, batches, parity.kept, finals, compared.steps, requantized=False)
    options.progress(f"comparing the float operations between the layers on {len(finals)} batches")
    float_path, why = compare_float_paths(record, [*batches, *paths], parity.kept, finals, dtype=dtype)
    forms = runner.layer_forms()
    layers = tuple(native_layer_report(record, name, parity, forms.get(name, ()), macs) for name in record.layers)
    findings = Findings(
        parity=parity,
        layers=layers,
        manifest=_manifest(runner, macs),
        macs=macs,
        steps_out=compared.steps,
        batch_note=batch_note,
        float_path=float_path,
        float_path_unknown=why,
        parting=parting,
    )
    report = assembled_report(
        path,
        record,
        findings,
        batches,
        notes=[*kernel_notes(forms), *compared.notes],
        steps=options.steps,
        seed=options.seed,
        runtime="native",
        start=start,
    )
    # on a GPU torch's own products may depend on the batch; report.notes says so
    batch_failure = [batch_note] if batch_note and isinstance(runner, NativeRunner) else []
    failures = (*report.failures, *compared.failures, *batch_failure)
    return replace(report, runtime=runtime_text(runner), failures=failures)


def runtime_text(runner: Any) -> str:
    """Engine, version, and instruction set and threads or device and float type, in words."""
    try:
        version = metadata.version("dq-deploy")
    except metadata.PackageNotFoundError:
        version = "of unknown version"
    executor = runner.executor
    if isinstance(runner, NativeRunner):
        return f"native {version}, {executor.context.isa}, {executor.context.threads} threads"
    return f"native {version}, {executor.device}, {executor.dtype}"


def _manifest(runner: Runner, macs: Macs) -> EngineManifest:
    """What `assembled_report` asks of an engine's manifest; the shares are those measured here."""
    assert runner.manifest is not None  # a record's own
    return replace(runner.manifest, macs=manifest_macs(macs))


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


def native_layer_report(
    record: Record, name: str, parity: Parity, forms: Sequence[LayerForm], macs: Macs
) -> LayerReport:
    """The report of one layer, with the form of its kernels; where numpy multiplies, the reason says so."""
    layer = record.layers[name]
    kernels = tuple(kernel_of(form, layer, i) for i, form in enumerate(forms[: len(layer.parts)])) or (MISSING,) * len(
        layer.parts
    )
    words = "; ".join(dict.fromkeys(form.form for form in forms))
    asked = "int_conv2d" if layer.kind == "conv2d" else "int_linear"
    requested = (f"{asked} W{layer.weight_bits}A{layer.activation_bits}",) * len(layer.parts)
    entry = ManifestLayer(name=name, integer=True, form=words)
    found = layer_report(layer, entry, parity.layers[name], kernels, requested, macs)
    reasons = "; ".join(dict.fromkeys(form.reason for form in forms if form.reason))
    return replace(found, reason=f"in numpy, not in a kernel: {reasons}") if reasons and not found.reason else found


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


@dataclass(frozen=True, kw_only=True)
class _Outputs:
    """Outputs by step; what is worth knowing, and what a demand for exactness refuses."""

    steps: list[StepOutput]
    notes: tuple[str, ...]
    failures: tuple[str, ...]


def _outputs(
    runner: Any,
    record: Record,
    batches: Sequence[Batch],
    mine: Sequence[Array],
    model: Denoiser | None,
    parity: Parity,
) -> _Outputs:
    """Against the twin in the same float operations, the training simulation and the float model.

    Kernels round as they are defined to, so the twin's output must be the engine's, bit for bit; that is more than the
    margin asked of other engines. What the twin sees of each layer is added to the layers.
    """
    simulated, problem = None, ""
    notes = [ON_GPU]
    if isinstance(runner, NativeRunner):
        notes = ["the simulation is the engine's own program with every integer layer computed by the numerics"]
        simulated, problem = _twin(runner, record, batches, mine, parity)
    failures = (problem,) if problem else ()
    try:
        trained = run_module(simulation(record, requantized=False), batches)
    except DqError as error:
        return _Outputs(
            steps=[],
            notes=(*notes, f"output was not compared with the training simulation: {error}"),
            failures=failures,
        )
    floats = None if model is None else run_module(model.module, batches)
    steps = compare_outputs(record, batches, mine, trained, simulated, floats)
    return _Outputs(steps=steps, notes=tuple(notes), failures=failures)


def _twin(
    runner: NativeRunner, record: Record, batches: Sequence[Batch], mine: Sequence[Array], parity: Parity
) -> tuple[list[Array] | None, str]:
    """Outputs of the twin, and what is wrong, in words; layers that differ in it are noted with the others."""
    name, twin = runner.outputs[0].name, Twin(runner.executor, record)
    try:
        simulated = [twin.run(batch.feeds)[name] for batch in batches]
    except DqError as error:
        return None, f"the simulation inside the engine's float operations cannot be run: {error}"
    for layer, difference in twin.differences.items():
        if parity.layers[layer].first is None:
            parity.layers[layer].first = difference
    wrong = [i for i, (a, b) in enumerate(zip(mine, simulated, strict=True)) if different_bits(a, b).any()]
    if not wrong or any(tally.first for tally in parity.layers.values()):
        return simulated, ""
    return simulated, (
        f"output of batch {wrong[0]} is not that of the same program with the numerics' integer layers, although every "
        "layer is equal; runs of the engine differ among themselves"
    )
