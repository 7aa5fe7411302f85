"""What the comparison of a file with its record adds to a report, and the report of a file that cannot be run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dq_deploy.manifest.values import EngineManifest
from dq_deploy.record import Record
from dq_deploy.verify.file.same_file import SameFile
from dq_deploy.verify.report.values import Fault, MacCounts, Report, failures_of, failures_of_file

MOST_SHOWN = 50
"""Differences that are named; where there are more, their number is."""


def with_file(report: Report, same: SameFile) -> Report:
    """The report with what the comparison found; a difference and an unknown are failures.

    Args:
        report: of what runs.
        same: the comparison.
    """
    texts = tuple(difference.text() for difference in same.differences[:MOST_SHOWN])
    if len(same.differences) > MOST_SHOWN:
        texts += (f"{len(same.differences) - MOST_SHOWN} more places",)
    found = failures_of_file(texts)
    if same.unknown:
        found += failures_of(
            Fault.RUN, [f"it is not known whether the engine is what its record makes: {same.unknown}"]
        )
    return replace(
        report,
        found=(*report.found, *found),
        file_compared=not same.unknown,
        file_differences=texts,
        file_unknown=same.unknown,
    )


def unrun_report(
    record: Record, path: Path, manifest: EngineManifest, error: Exception, *, seed: int, seconds: float
) -> Report:
    """The report of a file that is damaged so far that it does not run: nothing was compared in it.

    Args:
        record: the quantized denoiser.
        path: the file.
        manifest: inside it.
        error: why it does not run.
        seed: as asked for.
        seconds: time taken.
    """
    macs = manifest.macs
    return Report(
        engine=path.name,
        target=manifest.target,
        mode=manifest.mode,
        record_sha256=str(manifest.record_sha256),
        runtime="not run",
        processor="",
        integer_mac_share=0.0,
        integer_mac_share_of_quantizable=0.0,
        macs=MacCounts(
            of_all=1 if macs is None else macs.of_all,
            of_quantizable=1 if macs is None else macs.of_quantizable,
            attention=0 if macs is None else macs.attention,
            integer=0,
        ),
        max_code_difference=None,
        max_accumulator_difference=None,
        layers_compared=0,
        layers_total=len(record.layers),
        codes_compared=0,
        accumulators_compared=0,
        codes_probed=0,
        accumulators_probed=0,
        output_psnr_db=None,
        output_training_psnr_db=None,
        output_margin_db=None,
        output_steps=(),
        steps_total=record.steps,
        steps_checked=(),
        inputs_compared=0,
        float_path_difference=None,
        edges_checked=0,
        batch_equals_single=None,
        layers=(),
        float_layers=(),
        found=failures_of(Fault.RUN, [f"the engine does not run: {error}"]),
        notes=(),
        seed=seed,
        seconds=seconds,
    )
