"""The whole verification of one engine, by the prover that takes it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dq_deploy.artifacts import with_files_beside
from dq_deploy.errors import DqError, OptionError
from dq_deploy.open_engine import checked_engine
from dq_deploy.record import Record, check_is_record
from dq_deploy.verify.cost.quantization_error import quantization_error as measured
from dq_deploy.verify.cost.quantization_inputs import quantization_inputs
from dq_deploy.verify.file.same_file import TracedOnce
from dq_deploy.verify.layers.comparison import Progress
from dq_deploy.verify.native.prover import NativeProver, joined_report
from dq_deploy.verify.onnx.prover import OnnxProver
from dq_deploy.verify.output.float_source import recorded_float_model
from dq_deploy.verify.plan.prover import PlanProver
from dq_deploy.verify.plan.report import PlanReport
from dq_deploy.verify.prover import ProofOptions, Subject, prove, silent
from dq_deploy.verify.report.values import Report

if TYPE_CHECKING:
    from dq_deploy.models import Denoiser

PROVERS: tuple[type[NativeProver] | type[PlanProver] | type[OnnxProver], ...] = (NativeProver, PlanProver, OnnxProver)
"""The first that takes a file proves it."""

MOST_INPUTS = 1000
"""Samples at a step bucket; they are one batch of the engine and of the reference."""


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
    attention: str | None = None,
    quantization_error: bool = False,
    progress: Progress = silent,
    compare_with_record: bool = True,
    traced: TracedOnce | None = None,
    sizes: Mapping[str, int] | None = None,
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
        attention: what the native engine on a CPU computes attention's products in, as of `open_engine`. Anything but
            float32 is allowed its own rounding in the comparison of float operations, and its distance is reported.
        quantization_error: measure also what quantization costs against the float model, which is found by the
            record where none is given; a note says so where it is not there. It decides nothing.
        progress: called with a line at each stage.
        compare_with_record: export the record again and compare the file with that. Without it only what runs is
            looked at, which is what shows a mistake of the exporter itself.
        traced: the record's, where several engines of one record are proven.
        sizes: of the axes that vary, by name, at which the engine is proven besides its call's own; where none is given
            the proof takes smaller ones by itself.

    Returns:
        The report; it never raises because of a difference.

    Raises:
        OptionError: a plan, which is read and not run: see `verify_plan`.
        InputError: the engine was not exported from this record, or the model is another one.
        FileProblemError: the engine cannot be read.
        NonFiniteError: the engine's output is not finite, although the file is what its record makes.
    """
    options = ProofOptions(
        steps=steps,
        inputs=inputs,
        seed=seed,
        model=model,
        engine=engine,
        threads=threads,
        isa=isa,
        device=device,
        attention=attention,
        compare_with_record=compare_with_record,
        sizes=sizes or {},
        progress=progress,
    )
    path = Path(engine_path)
    if PlanProver.takes(path) and not NativeProver.takes(path):
        raise OptionError(f"{path} is a plan, which is read and not run; expected an ONNX file or a record")
    report = prove_engine(record, path, options, traced=traced, quantization_error=quantization_error)
    assert isinstance(report, Report)  # no plan
    return report


def verify_plan(
    engine: str | Path, *, record: Record | None = None, compare: bool = False, progress: Progress = silent
) -> PlanReport:
    """Say what a plan's layers became; with `compare`, say also that they were not compared, or run it.

    Args:
        engine: plan with its manifest beside it.
        record: what it should have been made from.
        compare: run the plan where a driver is found.
        progress: called with a line for each stage.

    Raises:
        FileProblemError: missing or foreign files, or a plan that was not made from this record.
    """
    options = ProofOptions(run_plan=compare, progress=progress)
    return prove(PlanProver(Subject(record=record, path=Path(engine), options=options)))


def prove_engine(
    record: Record | None,
    path: Path,
    options: ProofOptions,
    *,
    traced: TracedOnce | None = None,
    quantization_error: bool = False,
) -> Report | PlanReport:
    """Prove an engine by the first of `PROVERS` that takes it.

    Args:
        record: the quantized denoiser; only a plan can do without.
        path: the engine.
        options: how much is looked at.
        traced: the record's, where several engines of one record are proven.
        quantization_error: as of `verify`; not of a plan, which is not run.

    Returns:
        The report of a plan for a plan.

    Raises:
        OptionError: options out of range, or that this kind of engine does not have.
        DqError: as of `verify` and `verify_plan`.
    """
    if record is not None:
        check_is_record(record)
    for name, value in (("steps", options.steps), ("inputs", options.inputs)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise OptionError(f"{name} is {value!r}, expected a whole number from 1")
    if options.inputs > MOST_INPUTS:
        raise OptionError(f"inputs is {options.inputs}, expected at most {MOST_INPUTS}, which are one batch")
    followed = with_files_beside(checked_engine(path))
    chosen = next(prover for prover in PROVERS if prover.takes(followed))
    if issubclass(chosen, PlanProver):
        return prove(chosen(Subject(record=record, path=path, options=options)))
    subject = Subject(record=record, path=followed, options=options, traced=traced)
    provers = chosen.provers_of(subject)
    report = _joined([(prover.subject.options.isa, prove(prover)) for prover in provers])
    if not quantization_error or record is None:
        return report
    return _with_quantization_error(report, record, options.model, options.progress)


def _joined(reports: Sequence[tuple[str | None, Report]]) -> Report:
    """One report of an engine that was proven in one way, or in each instruction set."""
    if len(reports) == 1:
        return reports[0][1]
    return joined_report([report for _, report in reports], [str(name) for name, _ in reports])


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
