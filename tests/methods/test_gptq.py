"""Method gptq on tiny denoisers: closer than minmax, the same bytes again, resumed, within memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dq_deploy.calibration import CalibrationSource
from dq_deploy.errors import OptionError
from dq_deploy.methods import Progress, options_for, quantize
from dq_deploy.methods.options import PARTS
from dq_deploy.models import Denoiser
from dq_deploy.record import Record, content_sha256
from dq_deploy.simulation.fake_quant import simulate
from tests.calibration.recorded_runs import recorded
from tests.tiny import ONE_LEVEL, tiny_conditional_denoiser, tiny_denoiser

QUICK: dict[str, Any] = {"method": "gptq", "steps": 2, "samples": 8}


def small() -> Denoiser:
    return tiny_denoiser(**ONE_LEVEL)


def made(denoiser: Denoiser | None = None, **options: Any) -> Record:
    return quantize(denoiser or small(), **{**QUICK, **options})


@pytest.fixture(scope="module")
def rounded() -> Record:
    return made()


def error_of(record: Record, denoiser: Denoiser) -> float:
    drawn = recorded(denoiser, steps=2, samples=8, seed=9)
    inputs = {name: torch.from_numpy(value) for name, value in drawn.flat().items()}
    x, timestep = inputs["sample"], inputs["timestep"]
    with torch.no_grad():
        expected = denoiser.module(x, timestep, return_dict=False)[0]
        return float((simulate(record)(x, timestep) - expected).square().mean())


def test_it_is_closer_to_the_float_model_than_minmax_with_the_same_activation_tables(rounded: Record) -> None:
    denoiser = small()
    plain = made(method="minmax")
    assert error_of(rounded, denoiser) < 0.6 * error_of(plain, denoiser)
    for name, layer in plain.layers.items():
        for mine, was in zip(rounded.layers[name].parts, layer.parts, strict=True):
            np.testing.assert_array_equal(mine.scale, was.scale)
            np.testing.assert_array_equal(mine.zero_point, was.zero_point)


def test_the_same_seed_gives_the_same_bytes(rounded: Record) -> None:
    assert content_sha256(made()) == content_sha256(rounded)


def test_tensors_on_the_disk_and_few_layers_at_once_change_nothing(
    rounded: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("dq_deploy.methods.blocks.amounts.bytes_in_memory", lambda inputs: 1 << 40)
    notes: list[str] = []
    options = options_for(**QUICK, memory_gib=0.01)
    record = quantize(small(), options, progress=lambda report: notes.append(report.note))
    assert any("is kept in" in note for note in notes)
    for name, layer in rounded.layers.items():
        np.testing.assert_array_equal(record.layers[name].parts[0].w_code, layer.parts[0].w_code)


def test_memory_that_does_not_hold_the_widest_layer_s_statistics_is_refused() -> None:
    with pytest.raises(OptionError, match=r"memory_gib is 0.001, expected at least .*: the statistics of the widest"):
        made(tiny_denoiser(block_out_channels=[8, 48]), memory_gib=0.001)


@pytest.mark.parametrize("part", PARTS["gptq"])
def test_each_part_has_an_effect(part: str, rounded: Record) -> None:
    assert content_sha256(made(without=(part,))) != content_sha256(rounded)


def test_a_stopped_run_goes_on_and_ends_in_the_same_record(rounded: Record, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(report: Progress) -> None:
        if report.stage == "rounding" and report.done == 5:
            raise Stopped

    with pytest.raises(Stopped):
        quantize(small(), options_for(**QUICK), progress=stop, resume_dir=tmp_path / "state")
    kept = sorted((tmp_path / "state").glob("block-*"))
    assert kept
    before = kept[0].stat().st_mtime_ns
    record = quantize(small(), options_for(**QUICK), resume_dir=tmp_path / "state")
    assert kept[0].stat().st_mtime_ns == before
    assert content_sha256(record) == content_sha256(rounded)


def test_a_model_that_reads_text_is_rounded() -> None:
    record = made(tiny_conditional_denoiser(), samples=4, calibration=CalibrationSource(kind="random"))
    assert any("attn2" in name for name in record.layers)
    errors = [entry["relative_error"] for entry in record.provenance["history"] if "block" in entry]
    assert errors
    assert max(errors) < 1
