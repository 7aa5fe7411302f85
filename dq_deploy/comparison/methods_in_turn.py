"""Several methods on one model, one after the other: what dq-quantize does when it compares."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dq_deploy.artifacts import check_writable, missing_folder, write_text_atomic
from dq_deploy.bench.environment import describe_environment
from dq_deploy.calibration.request import CalibrationRequest
from dq_deploy.comparison.cell import Cell, cell_name, run_cell
from dq_deploy.comparison.subject import Subject
from dq_deploy.comparison.table import Row, row_of_cell
from dq_deploy.errors import FileProblemError
from dq_deploy.methods import Progress, SharedOptions
from dq_deploy.methods.layer_bits import bits_of_sites
from dq_deploy.models import Denoiser, quantizable_layers

FORMAT = "dq_deploy.comparison"
VERSION = 1
FILE_NAME = "comparison.json"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The cells of one run, in the order of the methods.

    Attributes:
        cells: one a method.
        facts: of the model, the settings and the machine, JSON values.
    """

    cells: tuple[Cell, ...]
    facts: dict[str, Any]

    def rows(self) -> list[Row]:
        """One row a cell; differences are to the first that was measured."""
        first = next((cell for cell in self.cells if cell.psnr_db), None)
        return [row_of_cell(cell, first) for cell in self.cells]

    def as_json(self) -> dict[str, Any]:
        """JSON values: what `comparison.json` holds."""
        cells = [cell.as_json() for cell in self.cells]
        return {"format": FORMAT, "version": VERSION, **self.facts, "rows": self.rows(), "cells": cells}


def open_folder(folder: Path) -> None:
    """Make the folder records are written to.

    Raises:
        FileProblemError: it is a file, its parent is missing, or it is not writable.
    """
    if folder.is_file():
        raise FileProblemError(f"`folder` {folder} is a file, expected a folder for the records of a comparison")
    if not folder.parent.is_dir():
        raise FileProblemError(missing_folder(folder.parent))
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise FileProblemError(f"cannot make {folder}: {error.strerror}; choose another `folder`") from error
    check_writable(folder / FILE_NAME)


def check_layers(denoiser: Denoiser, options: Sequence[SharedOptions]) -> None:
    """Refuse patterns of `keep` and `layer_bits` that match nothing, before anything is trained.

    Raises:
        OptionError: of the first method whose options do not fit the model.
    """
    sites = quantizable_layers(denoiser.module, denoiser.call)
    for own in options:
        bits_of_sites(sites, own)


def read_cells(folder: Path) -> dict[str, Cell]:
    """Cells an earlier run left in the folder, by name; none where there is no file or another program's.

    Raises:
        FileProblemError: the file is there and cannot be read.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            raise KeyError(value["format"])
        if value["version"] != VERSION:
            return {}
        cells = [Cell.from_json(entry) for entry in value["cells"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileProblemError(
            f"cannot go on with {path}: {type(error).__name__}: {error}; remove it, or choose another `folder`"
        ) from error
    return {cell.name: cell for cell in cells}


def compare_methods(
    subject: Subject,
    options: Sequence[SharedOptions],
    folder: Path,
    *,
    calibration: CalibrationRequest | None = None,
    resume: bool = True,
    on_progress: Callable[[str, Progress], None] = lambda name, report: None,
    on_cell: Callable[[Cell, bool], None] = lambda cell, kept: None,
    wording: Callable[[str], str] = str,
) -> Comparison:
    """Quantize and measure with each method in turn; `comparison.json` is written anew behind each.

    Args:
        subject: the float model, its images, and what rows are measured with.
        options: of each method.
        folder: where records and `comparison.json` go.
        calibration: what calibrates the model; by default what its folder has.
        resume: take finished cells of `comparison.json` whose model, options and measurement are the same, and go on
            with a training that was stopped; else everything is made anew.
        on_progress: called with the cell's name and a report.
        on_cell: called with each finished cell, and whether it was taken from an earlier run.
        wording: of errors, notes and remarks, as `comparison.json` and the cells have them: a command says options as
            its flags; by default they stay as they are.

    Raises:
        FileProblemError: the folder cannot be written.
    """
    open_folder(folder)
    known = {name: _worded(cell, wording) for name, cell in read_cells(folder).items()} if resume else {}
    names = [cell_name(own) for own in options]
    facts = _facts(subject, wording)
    done: dict[str, Cell] = {}

    def write(cell: Cell) -> None:
        done[cell.name] = cell
        shown = Comparison(cells=tuple(done[name] for name in names if name in done), facts=facts)
        value = shown.as_json()
        # earlier ones may be of other settings: no row, but here for a later run, or for this one's next methods
        value["cells"] += [cell.as_json() for name, cell in known.items() if name not in done]
        write_text_atomic(folder / FILE_NAME, json.dumps(value, indent=1) + "\n")

    finished: list[Cell] = []
    for own, name in zip(options, names, strict=True):
        before = known.get(name)
        cell = run_cell(
            subject,
            own,
            folder,
            calibration=calibration,
            before=before,
            resume=resume,
            on_progress=partial(on_progress, name),
            on_trained=write,
        )
        cell = _worded(cell, wording)
        write(cell)
        on_cell(cell, cell is before)
        finished.append(cell)
    return Comparison(cells=tuple(finished), facts=facts)


def _worded(cell: Cell, wording: Callable[[str], str]) -> Cell:
    """The cell with its texts in this wording; the same object where they are."""
    error, notes = None if cell.error is None else wording(cell.error), tuple(map(wording, cell.notes))
    return cell if (error, notes) == (cell.error, cell.notes) else replace(cell, error=error, notes=notes)


def _facts(subject: Subject, wording: Callable[[str], str]) -> dict[str, Any]:
    baseline = subject.baseline
    spread = baseline.real_against_real
    return {
        "model": str(subject.model),
        "model_sha256": subject.denoiser.source_sha256,
        "settings": asdict(subject.settings),
        "remarks": list(map(wording, subject.remarks)),
        "real_against_real": None if spread is None else asdict(spread),
        "recognised_of_float": None if baseline.recognised is None else float(baseline.recognised.mean()),
        "environment": describe_environment(threads=subject.settings.threads),
    }
