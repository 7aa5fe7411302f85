"""A cell is quantized, sampled and measured; what failed says where, and what stands is not made again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dq_deploy import save_record
from dq_deploy.calibration import CalibrationRequest
from dq_deploy.comparison import Cell, Subject, cell_name, run_cell
from dq_deploy.comparison import cell as module
from dq_deploy.comparison.worker import Trained, TrainingRequest
from dq_deploy.methods import options_for
from tests.tiny import random_record, tiny_denoiser

SMALL = {"activation_bits": 4, "steps": 2, "samples": 2}
OPTIONS = options_for(method="minmax", **SMALL)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Training writes a random record at once; the names of what was trained."""
    seen: list[str] = []

    def train(request: TrainingRequest, on_progress: object) -> Trained:
        seen.append(Path(request.out).name)
        save_record(random_record(tiny_denoiser(classes=3), steps=2), request.out)
        return Trained(seconds=1.5, peak_mib=20, loaded_mib=10)

    monkeypatch.setattr(module, "train", train)
    return seen


def test_a_cell_has_its_cost_and_its_images_quality(subject: Subject, trainings: list[str], tmp_path: Path) -> None:
    cell = run_cell(subject, OPTIONS, tmp_path)
    assert trainings == ["minmax-w4a4.pt"]
    assert cell.error is None
    assert (cell.calibration_s, cell.peak_mib, cell.bits) == (1.5, 20, "W4A4")
    assert cell.record_mib == (tmp_path / "minmax-w4a4.pt").stat().st_size / 2**20
    assert len(cell.psnr_db) == 4
    assert cell.quality is not None
    assert abs(np.mean(cell.psnr_db) - cell.quality["psnr_db"]["mean"]) < 1e-3
    assert Cell.from_json(cell.as_json()) == cell
    # again: nothing is trained; with another measurement the record is kept and measured anew
    assert run_cell(subject, OPTIONS, tmp_path, before=cell) is cell
    other = run_cell(subject, OPTIONS, tmp_path, before=replace(cell, measured_by="other"))
    assert (other, trainings) == (cell, ["minmax-w4a4.pt"])


def test_a_changed_record_or_option_is_made_again(
    subject: Subject, trainings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measured", lambda subject, cell, path, on_progress: replace(cell, quality={}))
    cell = run_cell(subject, OPTIONS, tmp_path)
    assert run_cell(subject, OPTIONS, tmp_path, before=cell) is cell
    changed = run_cell(subject, replace(OPTIONS, seed=1), tmp_path, before=cell)
    assert changed.made_from != cell.made_from
    noisier = replace(subject.denoiser, scheduler_config={"num_train_timesteps": 1000, "beta_end": 0.5})
    other = module.empty_cell(replace(subject, denoiser=noisier), OPTIONS, CalibrationRequest())
    assert other.made_from != cell.made_from
    (tmp_path / "minmax-w4a4.pt").write_bytes(b"damaged")
    run_cell(subject, OPTIONS, tmp_path, before=cell)
    assert len(trainings) == 3


@pytest.mark.parametrize("resume", [True, False])
def test_the_state_of_a_stopped_training_is_used_or_removed(
    subject: Subject, tmp_path: Path, resume: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, seen = options_for(method="dilatequant", **SMALL), []

    def train(request: TrainingRequest, on_progress: object) -> Trained:
        seen.append(Path(str(request.state)).exists())
        raise ValueError("far enough")

    monkeypatch.setattr(module, "train", train)
    state = (
        tmp_path / f"dilatequant-w4a4.{module.empty_cell(subject, options, CalibrationRequest()).made_from[:8]}.resume"
    )
    state.mkdir()
    (state / "state.json").touch()
    run_cell(subject, options, tmp_path, resume=resume)
    assert seen == [resume]


def test_a_failure_says_what_was_done_before_it(
    subject: Subject, trainings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Cell:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(module, "measured", broken)
    cell = run_cell(subject, OPTIONS, tmp_path)
    assert cell.error == "made, but not measured: internal error: RuntimeError: no such kernel"
    assert (cell.exit_code, cell.calibration_s) == (1, 1.5)


def test_names_tell_bits_and_left_out_parts() -> None:
    options = options_for(weight_bits=4, activation_bits=6, without=("distillation",))
    assert cell_name(options) == "dilatequant-w4a6-no-distillation"
