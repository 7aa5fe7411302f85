"""From what was measured to the report: statuses, failures in words, shares."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.manifest.values import EngineManifest, ManifestLayer
from dq_deploy.numerics import FLOAT32_EXACT
from dq_deploy.record import Layer, Record
from dq_deploy.verify.inputs import Batch, spread_buckets
from dq_deploy.verify.layers.attestation import MISSING, Kernel
from dq_deploy.verify.layers.compare import OUTPUT_TOLERANCE, LayerTally, Tally
from dq_deploy.verify.layers.mixed_bits import mixed_bits_of
from dq_deploy.verify.onnx.parity import Parity
from dq_deploy.verify.output.difference import REQUIRED_MARGIN_DB, StepOutput
from dq_deploy.verify.output.float_path import FloatPath
from dq_deploy.verify.output.parting import Parting
from dq_deploy.verify.report.record_notes import record_notes
from dq_deploy.verify.report.values import LayerReport, Report, StepCell

if TYPE_CHECKING:
    from dq_deploy.models import Macs

GRAPH_ONLY = "shown for the graph only: what the engine runs is in its plan (dq-build, then dq-verify of that plan)"


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything measured on one engine."""

    parity: Parity
    layers: tuple[LayerReport, ...]
    manifest: EngineManifest
    macs: Macs
    steps_out: list[StepOutput]
    batch_note: str | None
    float_path: FloatPath | None
    float_path_unknown: str = ""
    tables: tuple[str, ...] = ()
    parting: Parting | None = None


def layer_report(
    layer: Layer,
    entry: ManifestLayer | None,
    tally: LayerTally,
    kernels: tuple[Kernel, ...],
    requested: tuple[str, ...],
    macs: Macs,
) -> LayerReport:
    """The report of one layer.

    Args:
        layer: the record's.
        entry: the manifest's, or None where it does not name the layer.
        tally: what was compared.
        kernels: what the engine runs, by part.
        requested: what the file asks for, by part.
        macs: of the model.
    """
    integer = all(kernel.integer for kernel in kernels)
    status, reason = _status(entry, tally, kernels, integer)
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
        form="" if entry is None else entry.form or "",
        requested=requested,
        executed=tuple(kernel.op for kernel in kernels),
        operands=tuple(kernel.operands for kernel in kernels),
        integer=integer,
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


def _status(
    entry: ManifestLayer | None, tally: LayerTally, kernels: Sequence[Kernel], integer: bool
) -> tuple[str, str]:
    if tally.first is not None:
        return "differs", tally.first.text()
    if not integer and not any(kernel.declared for kernel in kernels):
        ran = ", ".join(f"{k.op} on {' x '.join(k.operands)}" for k in kernels)
        reason = (None if entry is None else entry.reason) or "; ".join(tally.problems)
        if all(kernel is MISSING for kernel in kernels):
            status = "float" if entry is None or not entry.integer else "unproven"
            return status, reason or "the engine shows no kernel"
        return "float", f"no integer product: the engine runs {ran}" + (f"; {reason}" if reason else "")
    unsafe = next((kernel.saturation for kernel in kernels if kernel.saturation), "")
    if unsafe:
        return "unsafe", unsafe
    if tally.problems:
        return "unproven", "; ".join(tally.problems)
    if not tally.steps:
        return "unproven", "nothing was compared"
    return "exact", GRAPH_ONLY if any(kernel.declared for kernel in kernels) else ""


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


def _failures(findings: Findings) -> list[str]:
    found = []
    for layer in findings.layers:
        if layer.status == "exact":
            continue
        prefix = "" if layer.reason.startswith("layer ") else f"layer {layer.name}: "
        found.append(f"{prefix}{layer.reason}" + ("" if layer.status == "differs" else f" ({layer.status})"))
    if not findings.layers:
        found.append("the record has no integer layer, so there is nothing to prove exact; expected at least one")
    if findings.parity.edge_problem:
        looked_up = any(layer.integer for layer in findings.layers)  # else no layer asks for a bucket
        found.insert(0 if looked_up else len(found), findings.parity.edge_problem)
    if findings.float_path is not None and findings.float_path.problem:
        found.append(findings.float_path.problem)
    if findings.float_path_unknown:
        found.append(findings.float_path_unknown)
    found += findings.tables
    found += _mac_problems(findings.manifest, findings.macs)
    if not _margins_explained(findings):
        found += _low_margins(findings)
    return found


def _margins_explained(findings: Findings) -> bool:
    """Whether float rounding explains every margin: each operation was compared, and rounding parts outputs as far."""
    return _float_path_agrees(findings) and (findings.parting is None or findings.parting.explained)


def _float_path_agrees(findings: Findings) -> bool:
    return findings.float_path is not None and not findings.float_path.problem


def _low_margins(findings: Findings) -> list[str]:
    where = f"; {findings.parting.text()}" if findings.parting is not None else ""
    return [
        f"output at step {s.bucket} (timestep {s.timestep:g}): the engine's error lies {s.margin_db:.1f} dB below the "
        f"simulation's error against float, expected {REQUIRED_MARGIN_DB:g}{where}"
        for s in findings.steps_out
        if s.margin_db is not None and s.margin_db < REQUIRED_MARGIN_DB
    ]


def _mac_problems(manifest: EngineManifest, macs: Macs) -> list[str]:
    said = manifest.macs
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


def _float_layers(findings: Findings) -> tuple[dict[str, Any], ...]:
    mine = {layer.name: layer for layer in findings.layers}
    rows = []
    for name, count in findings.macs.layers.items():
        layer = mine.get(name)
        if layer is None or not layer.integer:
            reason = "kept in float when the model was quantized" if layer is None else layer.reason
            rows.append({"name": name, "macs": count, "reason": reason})
    return tuple(rows)


def assembled_report(
    path: Path,
    record: Record,
    findings: Findings,
    batches: Sequence[Batch],
    *,
    notes: Sequence[str],
    steps: int,
    seed: int,
    runtime: str,
    start: float,
) -> Report:
    """The whole report.

    Args:
        path: the engine.
        record: the quantized denoiser.
        findings: what was measured.
        batches: the inputs.
        notes: what is worth knowing of the outputs.
        steps: step buckets asked for.
        seed: of the inputs.
        runtime: engine that ran.
        start: when it began, by `time.perf_counter`.
    """
    layers, macs, parity = findings.layers, findings.macs, findings.parity
    work = sum(layer.macs for layer in layers if layer.integer)
    code_gaps = [g for layer in layers if (g := layer.max_code_difference) is not None]
    gaps = [g for layer in layers if (g := layer.max_accumulator_difference) is not None]
    margins = [m for step in findings.steps_out if (m := step.margin_db) is not None]
    guessed = () if findings.float_path is None else findings.float_path.guessed
    all_notes = [*notes, *record_notes(record), *_notes(layers, findings.batch_note, guessed), *_margin_note(findings)]
    return Report(
        engine=path.name,
        target=findings.manifest.target,
        mode=findings.manifest.mode,
        record_sha256=str(findings.manifest.record_sha256),
        runtime=f"{runtime} {_version(runtime)}",
        processor=_processor(),
        integer_mac_share=work / macs.of_all,
        integer_mac_share_of_quantizable=work / macs.of_quantizable,
        macs={
            "of_all": macs.of_all,
            "of_quantizable": macs.of_quantizable,
            "attention": macs.attention,
            "integer": work,
        },
        max_code_difference=max(code_gaps, default=None),
        max_accumulator_difference=max(gaps, default=None),
        layers_compared=sum(1 for layer in layers if layer.codes_compared and layer.accumulators_compared),
        layers_total=len(layers),
        codes_compared=sum(layer.codes_compared for layer in layers),
        accumulators_compared=sum(layer.accumulators_compared for layer in layers),
        codes_probed=sum(layer.codes_probed for layer in layers),
        accumulators_probed=sum(layer.accumulators_probed for layer in layers),
        output_psnr_db=min((step.engine_psnr_db for step in findings.steps_out), default=None),
        output_training_psnr_db=min((step.training_psnr_db for step in findings.steps_out), default=None),
        output_margin_db=min(margins, default=None),
        output_steps=tuple(findings.steps_out),
        steps_total=record.steps,
        steps_checked=tuple(spread_buckets(record.steps, steps)),
        inputs_compared=sum(len(batch.buckets) for batch in batches),
        float_path_difference=None if findings.float_path is None else findings.float_path.max_difference,
        edges_checked=parity.edges_checked,
        batch_equals_single=None if findings.batch_note is None else not findings.batch_note,
        layers=layers,
        float_layers=_float_layers(findings),
        failures=tuple(_failures(findings)),
        notes=tuple(all_notes),
        seed=seed,
        seconds=time.perf_counter() - start,
        mixed_bits=mixed_bits_of(record),
        float_path_share=None if findings.float_path is None else findings.float_path.max_share,
        float_path_inputs=0 if findings.float_path is None else findings.float_path.inputs,
    )


def _margin_note(findings: Findings) -> list[str]:
    """Low margins that float rounding explains: a note, not a fault.

    Each of the runs at these steps was followed from layer to layer: its integer layers are the numerics', what is
    between them is the float module's within the rounding of its operations, and rounding moves the simulation as far.
    """
    low = _low_margins(findings)
    if not low or not _margins_explained(findings):
        return []
    assert findings.float_path is not None
    return [
        f"{len(low)} steps: {low[0]}; in each of these runs every layer and every float operation between them was "
        f"compared, and the largest difference is {findings.float_path.max_share:.0%} of what float rounding can make: "
        "single codes flip on the last bit of a float and quantization spreads them"
    ]


def _notes(layers: Sequence[LayerReport], batch_note: str | None, guessed: Sequence[str]) -> list[str]:
    notes = [batch_note] if batch_note else []
    if guessed:
        names = ", ".join(guessed[:3])
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


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
