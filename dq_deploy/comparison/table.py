"""The table of a comparison: one row a cell, in words, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dq_deploy.comparison.cell import Cell
from dq_deploy.errors import InputError
from dq_deploy.quality import Interval, interval_of_paired_difference

Row = dict[str, str]
MISSING = "-"


def interval_text(value: Mapping[str, Any] | None, digits: int = 2, factor: float = 1.0) -> str:
    """As `31.20 [30.90, 31.52]`."""
    if value is None:
        return MISSING
    mean, low, high = (factor * value[name] for name in ("mean", "low", "high"))
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def number_text(value: float | None, digits: int) -> str:
    """A number, or a dash for none."""
    return MISSING if value is None else f"{value:.{digits}f}"


def paired_psnr(cell: Cell, other: Cell) -> Interval | None:
    """PSNR of a cell less that of another, image by image; None where one is not measured.

    Raises:
        InputError: they were not measured on the same images.
    """
    if not cell.psnr_db or not other.psnr_db:
        return None
    if len(cell.psnr_db) != len(other.psnr_db):
        raise InputError(
            f"{cell.name} has {len(cell.psnr_db)} images and {other.name} {len(other.psnr_db)}, expected pairs"
        )
    return interval_of_paired_difference(np.asarray(cell.psnr_db), np.asarray(other.psnr_db))


def quality_columns(quality: Mapping[str, Any]) -> Row:
    """The columns of a `QualityRow` as JSON values; those that are not measured are left out."""
    found = {"PSNR, dB": interval_text(quality["psnr_db"])}
    if quality["ssim"] is not None:
        found["SSIM"] = interval_text(quality["ssim"], 3)
    if quality["feature_distance"] is not None:
        found["feature distance"] = interval_text(quality["feature_distance"], 3)
    name, kernel = quality["frechet_name"], quality["kernel_name"]
    if quality["frechet"] is not None:
        found[f"{name} to real"] = interval_text(quality["frechet"])
        found[f"{name} of float"] = interval_text(quality["frechet_of_reference"])
        spread = quality["real_against_real"]
        found["real against real"] = f"{spread['mean']:.2f} (sd {spread['sd']:.2f})"
        found[f"{kernel} to real"] = interval_text(quality["kernel"]["interval"], 4)
    elif quality["frechet_to_reference"] is not None:
        found[f"{name} to float's"] = number_text(quality["frechet_to_reference"], 2)
    if quality["recognised"] is not None:
        found["recognised, %"] = interval_text(quality["recognised"], 1, 100)
        found["float's, %"] = number_text(100 * quality["recognised_of_reference"]["mean"], 1)
    return found


def row_of_cell(cell: Cell, first: Cell | None = None) -> Row:
    """The row by heading; of a failed cell the error instead of numbers.

    Args:
        cell: what was measured.
        first: the cell that differences are given to, or None for no such column.
    """
    row = {"method": cell.method + "".join(f" - {part}" for part in cell.without), "bits": cell.bits}
    if cell.error is not None:
        return row | {"error": cell.error}
    if cell.quality is not None:
        row |= quality_columns(cell.quality)
    if first is not None:
        difference = None if cell is first else paired_psnr(cell, first)
        row["PSNR less first's, dB"] = interval_text(None if difference is None else vars(difference))
    time = cell.latency
    return row | {
        "calibration, s": number_text(cell.calibration_s, 1),
        "peak, MiB": number_text(cell.peak_mib, 0),
        "record, MiB": number_text(cell.record_mib, 2),
        "step, ms": MISSING if time is None else f"{time.ms:.2f} ({time.ratio:.2f}x float)",
    }


def headings(rows: Sequence[Row]) -> list[str]:
    """Every heading once, in the order of the fullest row; `error` is none of them."""
    found: dict[str, None] = {}
    for row in sorted(rows, key=len, reverse=True):
        found |= dict.fromkeys(name for name in row if name != "error")
    return list(found)


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    names = headings(rows)
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['method']} | {row['bits']} | failed: {_cellable(row['error'])} |")
        else:
            lines.append(f"| {' | '.join(row.get(name, MISSING) for name in names)} |")
    return "\n".join(lines) + "\n"


def _cellable(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
