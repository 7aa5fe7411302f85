"""EDA-DM on a tiny denoiser: what its record looks like, what its parts do, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dq_deploy.errors import NonFiniteError, OptionError
from dq_deploy.methods import Progress, options_from_preset, quantize
from dq_deploy.methods.options import EdaDmOptions
from dq_deploy.methods.training.reconstruction import fbr_settings
from dq_deploy.record import Record, content_sha256
from tests.tiny import tiny_denoiser

QUICK: dict[str, Any] = {
    "method": "eda-dm",
    "steps": 2,
    "samples": 4,
    "iterations": 1,
    "batch": 4,
    "asymmetric_weights": True,
}


class StopHereError(Exception):
    """Ends a run from its progress callback."""


@pytest.fixture(scope="module")
def trained() -> Record:
    return quantize(tiny_denoiser(), **QUICK)


def test_activations_are_static_skips_split_and_zero_points_kept(trained: Record) -> None:
    parts = [part for layer in trained.layers.values() for part in layer.parts]
    assert all(part.steps == 1 for part in parts)
    assert any(part.w_zero_point.any() for part in parts)
    assert any(len(layer.parts) == 2 for layer in trained.layers.values())
    assert trained.provenance["options"]["calibration_choice"] == "tdac"


def test_without_reconstruction_only_ranges_are_searched() -> None:
    record = quantize(tiny_denoiser(), **QUICK, without=("reconstruction", "tdac"))
    assert [entry["stage"] for entry in record.provenance["history"]] == ["ranges"]
    assert record.provenance["options"]["calibration_choice"] == "uniform"


def test_a_short_training_drops_no_activation_quantization_and_pulls_towards_whole_codes() -> None:
    options = options_from_preset("fast", method="eda-dm")
    assert isinstance(options, EdaDmOptions)
    settings = fbr_settings(options)
    assert (settings.activation_drop, settings.input_mix) == (0, 0)
    assert settings.rounding_penalty > 0
    assert EdaDmOptions().activation_drop == 0.5  # the paper's, of longer trainings


def test_a_stopped_run_goes_on_to_the_same_bytes(trained: Record, tmp_path: Path) -> None:
    def watch(report: Progress) -> None:
        if report.block == "mid_block.resnets.0":
            raise StopHereError

    with pytest.raises(StopHereError):
        quantize(tiny_denoiser(), **QUICK, resume_dir=tmp_path, progress=watch)
    assert len(list(tmp_path.glob("block-*"))) >= 4
    assert content_sha256(quantize(tiny_denoiser(), **QUICK, resume_dir=tmp_path)) == content_sha256(trained)


def test_a_diverged_run_keeps_its_finished_blocks_and_goes_on_at_other_rates_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dq_deploy.methods.training import block_reconstruction
    from dq_deploy.methods.training.block_reconstruction import DivergedError

    real = block_reconstruction.train_block

    def diverge(block: Any, settings: Any, **others: Any) -> None:
        if "time_emb_proj" in block.layers:
            raise DivergedError("the loss is nan at iteration 1")
        real(block, settings, **others)

    monkeypatch.setattr(block_reconstruction, "train_block", diverge)
    expected = rf"block down_blocks\.0\.resnets\.0: the loss is nan.*last good block is conv_in, kept in {tmp_path}"
    with pytest.raises(NonFiniteError, match=expected):
        quantize(tiny_denoiser(), **QUICK, resume_dir=tmp_path)
    assert len(list(tmp_path.glob("block-*"))) == 1
    monkeypatch.undo()
    with pytest.raises(OptionError, match="its option seed is 0, asked for is 1"):
        quantize(tiny_denoiser(), **QUICK, lr_scale=1e-4, seed=1, resume_dir=tmp_path)
    record = quantize(tiny_denoiser(), **QUICK, lr_scale=1e-4, resume_dir=tmp_path)
    blocks = [entry for entry in record.provenance["history"] if "block" in entry]
    assert [entry["block"] for entry in blocks if "rates" in entry] == ["conv_in"]
    assert blocks[0]["rates"]["lr_scale"] == 5e-3
    with pytest.raises(OptionError, match=r"its option lr_scale is 0\.0001, asked for is 0.005"):
        quantize(tiny_denoiser(), **QUICK, resume_dir=tmp_path)
