"""What `dq-quantize` shows of a run's corrections, of the run before and of older versions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dq_deploy.cli.text.quantize.summary import show_summary, summary_of
from tests.tiny import random_record, tiny_denoiser

OLD = {"stage": "step-correction", "kept": "rows", "share_of_error_left": 0.71}
NEW = {**OLD, "kept": "start", "output_kept": True, "share_of_error_left": 1.05, "share_of_error_left_at_all": 0.9}


@pytest.mark.parametrize(
    ("notes", "shown"),
    [
        ([OLD], "rows kept, 71.0 %"),  # as versions before the output's factor wrote it
        ([OLD, NEW], "factor and offset of the output kept, 90.0 %"),  # quest goes on from a record, whose notes stay
    ],
)
def test_the_last_correction_is_shown_of_any_version(
    notes: list[dict[str, Any]], shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = random_record(tiny_denoiser())
    options = {"iterations": 0, **record.provenance.get("options", {})}
    told = {"inputs": 1, "sampler": "none"}
    provenance = {"method": "quest", "options": options, "calibration": told, "history": notes}
    out = tmp_path / "model.pt"
    out.write_bytes(b"")
    show_summary(summary_of(replace(record, provenance=provenance), out, seconds=1.0))
    assert shown in " ".join(capsys.readouterr().out.replace("│", " ").split())
