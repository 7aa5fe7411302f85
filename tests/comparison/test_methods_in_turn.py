"""Methods run in turn: a failure is a row, an interrupt leaves what is finished, a second run goes on there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dq_deploy import load_model
from dq_deploy.comparison import (
    FILE_NAME,
    Cell,
    Subject,
    check_layers,
    compare_methods,
    open_folder,
    options_by_method,
)
from dq_deploy.comparison import cell as module
from dq_deploy.comparison.worker import Trained, TrainingError, TrainingRequest
from dq_deploy.errors import FileProblemError, OptionError
from dq_deploy.methods import options_for
from tests.comparison.test_table import FIRST

METHODS = ["minmax", "dmq", "dilatequant"]
OPTIONS, _ = options_by_method(METHODS, "fast", activation_bits=4, steps=2, samples=2)


class Trainer:
    """Stands in for `train`: writes a file, or does what it is told for a method."""

    def __init__(self, **instead: BaseException) -> None:
        self.instead, self.seen = instead, []

    def __call__(self, request: TrainingRequest, on_progress: object) -> Trained:
        method = request.options["method"]
        self.seen.append(method)
        if method in self.instead:
            raise self.instead[method]
        Path(request.out).write_text(json.dumps(request.options))
        return Trained(seconds=1.0, peak_mib=2.0, loaded_mib=1.0)


def measured(subject: Subject, cell: Cell, path: Path, on_progress: object) -> Cell:
    return replace(cell, quality=FIRST.quality, psnr_db=FIRST.psnr_db, latency=FIRST.latency)


@pytest.fixture
def run(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "measured", measured)

    def run(trainer: Trainer, **more: Any) -> Any:
        monkeypatch.setattr(module, "train", trainer)
        return compare_methods(subject, OPTIONS, tmp_path / "out", **more)

    return run


def test_a_failing_method_is_a_row_and_the_others_go_on(run: Any, tmp_path: Path) -> None:
    found = run(Trainer(dmq=TrainingError("loss is NaN", 3)))
    assert [cell.error for cell in found.cells] == [None, "loss is NaN", None]
    assert found.cells[1].exit_code == 3
    value = json.loads((tmp_path / "out" / FILE_NAME).read_text())
    assert [row["method"] for row in value["rows"]] == METHODS
    assert value["rows"][1]["error"] == "loss is NaN"
    assert value["settings"]["images"] == 4


def test_an_interrupt_leaves_the_finished_and_the_next_run_goes_on(run: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Trainer(dmq=KeyboardInterrupt()))
    value = json.loads((tmp_path / "out" / FILE_NAME).read_text())
    assert [cell["name"] for cell in value["cells"]] == ["minmax-w4a4"]
    assert (tmp_path / "out" / "minmax-w4a4.pt").is_file()
    trainer, kept = Trainer(), []
    found = run(trainer, on_cell=lambda cell, before: kept.append(before))
    assert trainer.seen == ["dmq", "dilatequant"]
    assert kept == [True, False, False]
    assert all(cell.error is None for cell in found.cells)
    again = Trainer()
    run(again, resume=False)
    assert again.seen == METHODS


def test_cells_of_other_bits_stay_in_the_file(run: Any, tmp_path: Path) -> None:
    run(Trainer())
    path = tmp_path / "out" / FILE_NAME
    value = json.loads(path.read_text())
    value["cells"].append({**value["cells"][0], "name": "minmax-w8a8", "weight_bits": 8})
    path.write_text(json.dumps(value))
    run(Trainer())
    names = [cell["name"] for cell in json.loads(path.read_text())["cells"]]
    assert names == [*(f"{method}-w4a4" for method in METHODS), "minmax-w8a8"]


def test_cells_of_other_settings_are_replaced_one_by_one(run: Any, tmp_path: Path) -> None:
    """Pairs of other images cannot be told apart from these: until its turn has come a method has no row."""
    run(Trainer())
    path = tmp_path / "out" / FILE_NAME
    value = json.loads(path.read_text())
    value["cells"] = [{**cell, "measured_by": "other", "psnr_db": [30.0] * 9} for cell in value["cells"]]
    path.write_text(json.dumps(value))
    with pytest.raises(KeyboardInterrupt):
        run(Trainer(), on_cell=lambda cell, kept: (_ for _ in ()).throw(KeyboardInterrupt))
    value = json.loads(path.read_text())
    assert [row["method"] for row in value["rows"]] == METHODS[:1]
    assert [len(cell["psnr_db"]) for cell in value["cells"]] == [len(FIRST.psnr_db), 9, 9]
    assert [row["method"] for row in run(Trainer()).rows()] == METHODS


def test_a_file_that_is_no_comparison_is_named(run: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / FILE_NAME).write_text("{}")
    with pytest.raises(FileProblemError, match="remove it"):
        run(Trainer())


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileProblemError, match="is a file"):
        open_folder(tmp_path / "file")
    with pytest.raises(FileProblemError, match="does not exist"):
        open_folder(tmp_path / "a" / "b")


def test_patterns_that_match_nothing_are_refused_before_training(model_dir: Path) -> None:
    with pytest.raises(OptionError, match="matches no layer"):
        check_layers(load_model(model_dir), [options_for(keep=("nothing.*",))])
