"""Correction by step: rows from held-out trajectories, as far as they support them, kept where they help."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dq_deploy import quantize, save_record, verify
from dq_deploy.calibration import CalibrationSource
from dq_deploy.errors import OptionError
from dq_deploy.methods.correction.shrinking import shrunk_mean
from dq_deploy.methods.correction.step_rows import _by_trajectory, _parts
from dq_deploy.record import Record
from tests.tiny import tiny_conditional_denoiser, tiny_denoiser

QUICK: dict[str, Any] = {"method": "minmax", "steps": 3, "samples": 8, "weight_bits": 3, "activation_bits": 4}


@pytest.fixture(scope="module")
def plain() -> Record:
    return quantize(tiny_denoiser(), **QUICK)


@pytest.fixture(scope="module")
def corrected() -> Record:
    return quantize(tiny_denoiser(), **QUICK, step_correction=True)


def test_a_coarse_record_gets_rows_that_lower_the_held_out_error(plain: Record, corrected: Record) -> None:
    note = corrected.provenance["history"][-1]
    assert note["stage"] == "step-correction"
    biased = {name: layer for name, layer in corrected.layers.items() if layer.bias is not None}
    assert (note["trajectories"], note["judged_on"], note["layers"]) == (6, 2, len(biased))
    assert note["kept"] == "rows"
    assert note["share_of_error_left"] < 0.9
    for name, layer in biased.items():
        assert layer.bias.shape == (3, layer.out_channels)
        np.testing.assert_array_equal(layer.parts[0].w_code, plain.layers[name].parts[0].w_code)
    assert corrected.provenance["options"]["step_correction"] is True


def test_the_corrected_record_is_exact(corrected: Record, tmp_path: Any) -> None:
    save_record(corrected, tmp_path / "model.pt")
    report = verify(corrected, tmp_path / "model.pt", steps=3, inputs=1, threads=1)
    assert report.failures == ()
    assert report.max_code_difference == report.max_accumulator_difference == 0


def test_what_does_not_help_is_left_out(plain: Record) -> None:
    fine = {**QUICK, "method": "dilatequant", "weight_bits": 8, "activation_bits": 8, "iterations": 1, "batch": 2}
    record = quantize(tiny_denoiser(), **fine, step_correction=True)
    note = record.provenance["history"][-1]
    one_row = all(layer.bias is None or layer.bias.ndim == 1 for layer in record.layers.values())
    assert one_row is (note["kept"] == "start")
    assert (note["share_of_error_left"] < 1) is (note["kept"] == "rows")


def test_a_text_model_and_one_step_have_rows_too() -> None:
    one = quantize(tiny_conditional_denoiser(), **{**QUICK, "steps": 1}, step_correction=True)
    assert one.provenance["history"][-1]["stage"] == "step-correction"
    assert all(layer.bias is None or layer.bias.ndim == 1 for layer in one.layers.values())
    with_rows = {name for name, layer in one.layers.items() if layer.bias is not None}
    assert one.provenance["history"][-1]["layers"] == len(with_rows) < len(one.layers)


def test_without_other_trajectories_it_is_refused() -> None:
    denoiser = tiny_denoiser()
    shape = (6, 1, 8, 8)
    latents = {"sample": np.zeros(shape, np.float32), "timestep": np.repeat([1.0, 9.0], 3).astype(np.float32)}
    source = CalibrationSource(kind="latents", latents=latents)
    with pytest.raises(OptionError, match="a file of latents has no others"):
        quantize(denoiser, **QUICK, step_correction=True, calibration=source)
    with pytest.raises(OptionError, match="samples is 2, expected at least 3"):
        quantize(denoiser, **{**QUICK, "samples": 2}, step_correction=True)


@given(st.integers(2, 40), st.integers(0, 1000))
def test_a_mean_is_kept_as_far_as_the_sample_supports_it(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = torch.from_numpy(rng.normal(0, 1, (count, 4)))
    mean, share = shrunk_mean(noise)
    assert 0 <= share <= 1
    assert (mean.abs() <= noise.mean(0).abs().float() + 1e-6).all()
    sure, all_of_it = shrunk_mean(noise * 1e-6 + 5)
    assert all_of_it > 0.999
    np.testing.assert_allclose(sure, 5, rtol=1e-3)


def test_rows_of_one_trajectory_count_once_and_trajectories_stay_whole() -> None:
    values = torch.tensor([[1.0], [3.0], [10.0], [20.0]])
    assert _by_trajectory(values, torch.tensor([0, 0, 1, 1])).tolist() == [[2.0], [15.0]]
    first, second = _parts(np.tile(np.arange(8), 3))
    assert sorted([*first, *second]) == list(range(24))
    assert set(second % 8) == {6, 7}
    assert set(first % 8) == {0, 1, 2, 3, 4, 5}
