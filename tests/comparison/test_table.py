"""The table shows what was measured, differences by pairs, and failures as rows."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from dq_deploy.cli.text.quantize.comparison_table import rich_table
from dq_deploy.comparison import Cell, markdown, paired_psnr, row_of_cell
from dq_deploy.comparison.latency import StepTime
from dq_deploy.errors import InputError
from dq_deploy.quality import quality_row


def made(method: str, noise: float, **changes: Any) -> Cell:
    rng = np.random.default_rng(0)
    reference = rng.uniform(-1, 1, (6, 1, 12, 12)).astype(np.float32)
    images = np.clip(reference + noise * rng.standard_normal(reference.shape), -1, 1).astype(np.float32)
    labels = np.arange(6)
    row = quality_row(
        images, reference, extractor=None, labels=labels, recognise=lambda x: np.where(np.arange(6) < 3, labels, 9)
    )
    values: dict[str, Any] = {
        "name": f"{method}-w4a4",
        "method": method,
        "weight_bits": 4,
        "activation_bits": 4,
        "quality": row.as_json(),
        "psnr_db": row.per_image.psnr_db,
        "calibration_s": 12.34,
        "peak_mib": 640.2,
        "record_mib": 0.5,
        "latency": StepTime(ms=1.5, float_ms=3.0, ratio=2.0, engine="native"),
    }
    return Cell(**{**values, **changes})


FIRST, BETTER = made("minmax", 0.1), made("dmq", 0.05)
FAILED = Cell(name="quest-w4a4", method="quest", weight_bits=4, activation_bits=4, error="it | broke", exit_code=3)


def test_a_row_holds_intervals_and_costs() -> None:
    row = row_of_cell(FIRST)
    assert row["PSNR, dB"].startswith("26.")
    assert "[" in row["PSNR, dB"]
    assert row["recognised, %"].startswith("50.0 [")
    assert row["float's, %"] == "50.0"
    assert (row["calibration, s"], row["peak, MiB"], row["record, MiB"]) == ("12.3", "640", "0.50")
    assert row["step, ms"] == "1.50 (2.00x float)"
    assert "feature distance" not in row


def test_the_difference_to_the_first_is_by_pairs() -> None:
    difference = paired_psnr(BETTER, FIRST)
    assert difference is not None
    assert difference.low > 5
    assert row_of_cell(BETTER, FIRST)["PSNR less first's, dB"].startswith("5.9")
    assert row_of_cell(FIRST, FIRST)["PSNR less first's, dB"] == "-"
    assert paired_psnr(FAILED, FIRST) is None
    with pytest.raises(InputError, match="expected pairs"):
        paired_psnr(made("dmq", 0.1, psnr_db=(1.0, 2.0)), FIRST)


def test_a_failed_method_is_a_row_of_its_own() -> None:
    lines = markdown([row_of_cell(cell, FIRST) for cell in (FIRST, FAILED)]).splitlines()
    assert lines[0].startswith("| method | bits | PSNR, dB |")
    assert lines[3] == "| quest | W4A4 | failed: it \\| broke |"


def test_the_printed_table_has_a_column_a_method_and_fits() -> None:
    rows = [row_of_cell(cell, FIRST) for cell in (FIRST, BETTER, FAILED)]
    out = io.StringIO()
    Console(file=out, width=100).print(rich_table(rows, "three"))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert all(name in text for name in ("minmax", "dmq", "quest", "failed", "PSNR less first's, dB"))
