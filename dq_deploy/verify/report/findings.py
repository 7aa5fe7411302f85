"""From what was measured to the report: statuses, failures in words, shares."""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dq_deploy.manifest.values import ManifestMacs
from dq_deploy.numerics import FLOAT32_EXACT
from dq_deploy.record import OUTPUT, Layer, Record
from dq_deploy.verify.inputs import Runs, spread_buckets
from dq_deploy.verify.layers.attestation import MISSING, Kernel
from dq_deploy.verify.layers.comparison import LayerResults
from dq_deploy.verify.layers.mixed_bits import mixed_bits_of
from dq_deploy.verify.layers.outputs import OUTPUT_TOLERANCE
from dq_deploy.verify.layers.tally import LayerTally, Tally
from dq_deploy.verify.output.difference import REQUIRED_MARGIN_DB
from dq_deploy.verify.output.float_path import FloatPath
from dq_deploy.verify.output.outputs import Outputs
from dq_deploy.verify.report.record_notes import record_notes
from dq_deploy.verify.report.values import (
    Failure,
    Fault,
    FloatLayer,
    LayerReport,
    MacCounts,
    Report,
    StepCell,
    failures_of,
)
from dq_deploy.verify.steps import LeftOut

if TYPE_CHECKING:
    from dq_deploy.models import Macs

GRAPH_ONLY = (
    "shown for the graph only: what the engine runs is in its plan (dq-build, then dq-verify `engine` unet.plan)"
)


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What an engine says of itself.

    Attributes:
        target: what it was exported for.
        mode: `exact` or `fast`.
        record_sha256: of the quantized model it was made from.
        macs: what its manifest says of multiply-accumulates; None where it lacks them.
        says_macs: whether this kind of engine has to say them.
    """

    target: str
    mode: str
    record_sha256: str
    macs: ManifestMacs | None = None
    says_macs: bool = True


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything measured on one engine.

    Attributes:
        record: the quantized denoiser.
        engine: file name.
        claims: what the engine says of itself.
        runtime: engine, version and what else decides how it runs, in words.
        macs: of the denoiser.
        runs: the inputs and what the engine gave.
        results: of the layers' comparison.
        layers: the report of each.
        outputs: of the denoiser's output.
        float_path: of the float operations between the layers.
        tables: what is wrong with large tables, in words.
        notes: what is worth knowing of this kind of engine.
        failures: what else is wrong, in words.
        steps: step buckets asked for.
        seed: of the inputs.
        seconds: time taken.
        left_out: steps that were not done.
        in_codes: module paths of the attentions that the engine runs with the record's quantizers.
    """

    record: Record
    engine: str
    claims: Claims
    runtime: str
    macs: Macs
    runs: Runs
    results: LayerResults
    layers: tuple[LayerReport, ...]
    outputs: Outputs
    float_path: FloatPath | LeftOut
    tables: tuple[str, ...]
    notes: tuple[str, ...]
    failures: tuple[str, ...]
    steps: int
    seed: int
    seconds: float
    left_out: tuple[LeftOut, ...]
    in_codes: Collection[str] = ()

    @property
    def compared_path(self) -> FloatPath | None:
        """What the comparison of the float operations found; None where it was left out."""
        return self.float_path if isinstance(self.float_path, FloatPath) else None


@dataclass(frozen=True, kw_only=True)
class LayerEvidence:
    """What is known of one layer.

    Attributes:
        tally: what was compared.
        kernels: what the engine runs, by part.
        requested: what the file asks for, by part.
        asked_integer: whether the exporter wrote it in integers.
        form: what the exporter wrote, in words.
        reason: why it is not in integers, by the exporter; may be empty.
    """

    tally: LayerTally
    kernels: tuple[Kernel, ...]
    requested: tuple[str, ...]
    asked_integer: bool
    form: str
    reason: str = ""

    @property
    def integer(self) -> bool:
        """Whether every part's kernel takes two integer operands."""
        return all(kernel.integer for kernel in self.kernels)


def layer_report(layer: Layer, known: LayerEvidence, macs: Macs) -> LayerReport:
    """The report of one layer.

    Args:
        layer: the record's.
        known: what is known of it.
        macs: of the model.
    """
    status, reason = _status(known)
    tally, kernels = known.tally, known.kernels
    codes, accumulators = (
        sum(getattr(step, name) for step in tally.steps.values()) for name in ("codes", "accumulators")
    )
    every = [*tally.steps.values(), tally.probe]
    largest = max(step.largest_accumulator for step in every)
    return LayerReport(
        name=layer.name,
        kind=layer.kind,
        weight_bits=layer.weight_bits,
        activation_bits=layer.activation_bits,
        form=known.form,
        requested=known.requested,
        executed=tuple(kernel.op for kernel in kernels),
        operands=tuple(kernel.operands for kernel in kernels),
        integer=known.integer,
        macs=macs.layers.get(layer.name, 0),
        status=status,
        reason=reason,
        codes_compared=codes,
        accumulators_compared=accumulators,
        max_code_difference=max(step.max_code_difference for step in every) if codes else None,
        max_accumulator_difference=max(step.max_accumulator_difference for step in every) if accumulators else None,
        accumulator_resolution=float(np.spacing(np.float32(largest))) if largest >= FLOAT32_EXACT else 1.0,
        largest_accumulator=largest,
        codes_probed=tally.probe.codes,
        accumulators_probed=tally.probe.accumulators,
        first_difference=tally.first,
        steps=tuple(_cell(bucket, step, tally) for bucket, step in sorted(tally.steps.items())),
    )


def _status(known: LayerEvidence) -> tuple[str, str]:
    """One of `STATUSES`, and why it is not `exact`."""
    tally, kernels = known.tally, known.kernels
    declared = any(kernel.declared for kernel in kernels)
    if tally.first is not None:
        return "differs", tally.first.text()
    if not known.integer and not declared:
        ran = ", ".join(f"{k.op} on {' x '.join(k.operands)}" for k in kernels)
        reason = known.reason or "; ".join(tally.problems)
        if all(kernel is MISSING for kernel in kernels):
            return ("unproven" if known.asked_integer else "float"), reason or "the engine shows no kernel"
        return "float", f"no integer product: the engine runs {ran}" + (f"; {reason}" if reason else "")
    unsafe = next((kernel.saturation for kernel in kernels if kernel.saturation), "")
    if unsafe:
        return "unsafe", unsafe
    if tally.problems:
        return "unproven", "; ".join(tally.problems)
    if not tally.steps:
        return "unproven", "nothing was compared"
    return "exact", GRAPH_ONLY if declared else ""


def _cell(bucket: int, step: Tally, tally: LayerTally) -> StepCell:
    return StepCell(
        bucket=bucket,
        timestep=tally.timesteps.get(bucket, float(bucket)),
        samples=step.samples,
        codes_compared=step.codes,
        code_differences=step.code_differences,
        max_code_difference=step.max_code_difference,
        accumulators_compared=step.accumulators,
        accumulator_differences=step.accumulator_differences,
        max_accumulator_difference=step.max_accumulator_difference,
        max_output_difference=step.max_output_difference,
        output_codes_compared=step.output_codes,
        output_code_differences=step.output_code_differences,
        max_output_code_difference=step.max_output_code_difference,
    )


def _failures(findings: Findings) -> tuple[Failure, ...]:
    found = [_layer_failure(layer) for layer in findings.layers if layer.status != "exact"]
    if not findings.layers:
        found.append("the record has no integer layer, so there is nothing to prove exact; expected one or no `exact`")
    edges, path = findings.results.edge_problem, findings.float_path
    if edges:
        looked_up = any(layer.integer for layer in findings.layers)  # else no layer asks for a bucket
        found.insert(0 if looked_up else len(found), edges)
    if isinstance(path, LeftOut):
        found.append(path.words())
    elif path.problem:
        found.append(path.problem)
    found += findings.tables
    found += _mac_problems(findings)
    if not _margins_explained(findings):
        found += _low_margins(findings)
    return failures_of(Fault.RUN, [*found, *findings.outputs.failures, *findings.failures])


def _layer_failure(layer: LayerReport) -> str:
    """Why a layer is not exact; a difference names the layer itself."""
    if layer.first_difference is not None:
        return layer.reason
    return f"layer {layer.name}: {layer.reason} ({layer.status})"


def _margins_explained(findings: Findings) -> bool:
    """Whether float rounding explains every margin: each operation was compared, and rounding parts outputs as far."""
    path, parting = findings.compared_path, findings.outputs.parting
    return path is not None and not path.problem and (parting is None or parting.explained)


def _low_margins(findings: Findings) -> list[str]:
    where = f"; {findings.outputs.parting.text()}" if findings.outputs.parting is not None else ""
    return [
        f"{_words_of_output(s.output)} at step {s.bucket} (timestep {s.timestep:g}): the engine's error lies "
        f"{s.margin_db:.1f} dB below the simulation's error against float, expected {REQUIRED_MARGIN_DB:g}{where}"
        for s in findings.outputs.steps
        if s.margin_db is not None and s.margin_db < REQUIRED_MARGIN_DB
    ]


def _words_of_output(name: str) -> str:
    return name if name == OUTPUT else f"output {name}"


def _mac_problems(findings: Findings) -> list[str]:
    if not findings.claims.says_macs:
        return []
    said, macs = findings.claims.macs, findings.macs
    mine = {"of_all": macs.of_all, "of_quantizable": macs.of_quantizable, "attention": macs.attention}
    problems = [
        f"manifest says macs {key} is {getattr(said, key, None)}, the model has {value}"
        for key, value in mine.items()
        if getattr(said, key, None) != value
    ]
    layers = {} if said is None else said.layers
    return problems + [
        f"layer {name}: manifest says {layers.get(name)} macs, the model has {count}"
        for name, count in macs.layers.items()
        if layers.get(name) != count
    ]


def _float_layers(findings: Findings) -> tuple[FloatLayer, ...]:
    mine = {layer.name: layer for layer in findings.layers}
    rows = []
    for name, count in findings.macs.layers.items():
        layer = mine.get(name)
        if layer is None or not layer.integer:
            reason = "kept in float when the model was quantized" if layer is None else layer.reason
            rows.append(FloatLayer(name=name, macs=count, reason=reason))
    return tuple(rows)


def assembled_report(findings: Findings) -> Report:
    """The whole report of what was measured."""
    layers, macs, outputs, path = findings.layers, findings.macs, findings.outputs, findings.compared_path
    work = sum(layer.macs for layer in layers if layer.integer)
    batch_difference = findings.runs.batch_difference
    return Report(
        engine=findings.engine,
        target=findings.claims.target,
        mode=findings.claims.mode,
        record_sha256=findings.claims.record_sha256,
        runtime=findings.runtime,
        processor=_processor(),
        integer_mac_share=work / macs.of_all,
        integer_mac_share_of_quantizable=work / macs.of_quantizable,
        macs=MacCounts(of_all=macs.of_all, of_quantizable=macs.of_quantizable, attention=macs.attention, integer=work),
        max_code_difference=_largest(layer.max_code_difference for layer in layers),
        max_accumulator_difference=_largest(layer.max_accumulator_difference for layer in layers),
        layers_compared=sum(1 for layer in layers if layer.codes_compared and layer.accumulators_compared),
        layers_total=len(layers),
        codes_compared=sum(layer.codes_compared for layer in layers),
        accumulators_compared=sum(layer.accumulators_compared for layer in layers),
        codes_probed=sum(layer.codes_probed for layer in layers),
        accumulators_probed=sum(layer.accumulators_probed for layer in layers),
        output_psnr_db=_least(step.engine_psnr_db for step in outputs.steps),
        output_training_psnr_db=_least(step.training_psnr_db for step in outputs.steps),
        output_margin_db=_least(step.margin_db for step in outputs.steps),
        output_steps=tuple(outputs.steps),
        steps_total=findings.record.steps,
        steps_checked=tuple(spread_buckets(findings.record.steps, findings.steps)),
        inputs_compared=sum(len(batch.buckets) for batch in findings.runs.batches),
        float_path_difference=None if path is None else path.max_difference,
        edges_checked=findings.results.edges_checked,
        batch_equals_single=None if batch_difference is None else not batch_difference,
        layers=layers,
        float_layers=_float_layers(findings),
        found=_failures(findings),
        notes=_notes(findings),
        seed=findings.seed,
        seconds=findings.seconds,
        mixed_bits=mixed_bits_of(findings.record),
        float_path_share=None if path is None else path.max_share,
        float_path_inputs=0 if path is None else path.inputs,
        sizes=findings.runs.sizes,
        left_out=findings.left_out,
    )


Number = TypeVar("Number", int, float)


def _largest(values: Iterable[Number | None]) -> Number | None:
    return max((value for value in values if value is not None), default=None)


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _margin_note(findings: Findings) -> list[str]:
    """Low margins that float rounding explains: a note, not a fault.

    Each of the runs at these steps was followed from layer to layer: its integer layers are the numerics', what is
    between them is the float module's within the rounding of its operations, and rounding moves the simulation as far.
    """
    low, path = _low_margins(findings), findings.compared_path
    if not low or path is None or not _margins_explained(findings):
        return []
    return [
        f"{len(low)} steps: {low[0]}; in each of these runs every layer and every float operation between them was "
        f"compared, and the largest difference is {path.max_share:.0%} of what float rounding can make: "
        "single codes flip on the last bit of a float and quantization spreads them"
    ]


def _notes(findings: Findings) -> tuple[str, ...]:
    """All notes: of this kind of engine, of the record, of what was compared."""
    compared = [*_comparison_notes(findings), *_margin_note(findings)]
    of_record = record_notes(findings.record, in_codes=findings.in_codes)
    return (*findings.notes, *findings.outputs.notes, *of_record, *compared)


def _comparison_notes(findings: Findings) -> list[str]:
    layers, path = findings.layers, findings.compared_path
    runs = findings.runs
    notes = [note for note in (runs.batch_difference, runs.sizes_note) if note]
    if path is not None and path.guessed:
        names = ", ".join(path.guessed[:3])
        notes.append(f"float operations whose rounding was measured, for no bound is derived for them: {names}")
    coarse = [layer for layer in layers if layer.accumulator_resolution > 1]
    if coarse:
        worst = max(coarse, key=lambda layer: layer.accumulator_resolution)
        notes.append(
            f"{len(coarse)} layers reach accumulators of 2^24 and more, which float32 holds to a resolution of "
            f"{worst.accumulator_resolution:g} at most ({worst.name})"
        )
    gap = max((step.max_output_difference for layer in layers for step in layer.steps), default=0.0)
    if gap:
        notes.append(
            f"float outputs of layers differ by up to {gap:.2g} of their range (allowed {OUTPUT_TOLERANCE:.2g})"
        )
    return notes


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
