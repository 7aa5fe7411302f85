"""A factor and an offset of the output are found from held-out trajectories and put into the last layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dq_deploy import quantize, save_record, verify
from dq_deploy.calibration import CalibrationSource
from dq_deploy.methods.correction.output_fit import _heard, _same_values, with_fitted_output
from dq_deploy.methods.correction.step_rows import _held_out
from dq_deploy.methods.options.by_method import MinmaxOptions
from dq_deploy.methods.progress import silent
from dq_deploy.methods.run import Run
from dq_deploy.record import Record
from tests.tiny import tiny_denoiser

STEPS = 3
OPTIONS = MinmaxOptions(steps=STEPS, samples=8)


@pytest.fixture(scope="module")
def run() -> Run:
    return Run(denoiser=tiny_denoiser(), source=CalibrationSource(), progress=silent)


@pytest.fixture(scope="module")
def fine() -> Record:
    return quantize(tiny_denoiser(), method="minmax", steps=STEPS, samples=8)


def _off(record: Record, factor: Any, offset: Any) -> Record:
    """The record with another factor and offset of its last layer's output."""
    name = list(record.layers)[-1]
    layer = record.layers[name]
    parts = tuple(replace(p, weight_scale=(p.weight_scale * factor).astype(np.float32)) for p in layer.parts)
    bias = (layer.bias * factor + offset).astype(np.float32)
    return replace(record, layers={**record.layers, name: replace(layer, parts=parts, bias=bias)})


def _fitted(run: Run, record: Record) -> Record | None:
    held = _held_out(run, OPTIONS)
    return with_fitted_output(run, record, held, np.arange(len(held.inputs["step"])), np.ones(STEPS))


@pytest.mark.parametrize(("factor", "offset"), [(0.9, 0.0), (1.0, 0.2), (1.1, -0.1)])
def test_an_output_that_is_off_is_put_right(run: Run, fine: Record, factor: float, offset: float) -> None:
    name = list(fine.layers)[-1]
    wrong = _off(fine, factor, offset)
    found, same = _fitted(run, wrong), _fitted(run, fine)
    assert found is not None
    assert same is not None
    right, ours = same.layers[name], found.layers[name]
    np.testing.assert_allclose(ours.parts[0].weight_scale, right.parts[0].weight_scale, rtol=0.01)
    np.testing.assert_allclose(ours.bias, right.bias, atol=0.01)
    np.testing.assert_array_equal(ours.parts[0].w_code, fine.layers[name].parts[0].w_code)
    assert found.layers.keys() == fine.layers.keys()
    assert all(found.layers[other] is wrong.layers[other] for other in fine.layers if other != name)


def test_a_fitted_record_is_exact_with_a_bias_row_a_step(run: Run, fine: Record, tmp_path: Any) -> None:
    name = list(fine.layers)[-1]
    layer = fine.layers[name]
    rows = layer.bias[None] + np.float32([[0.1], [0.0], [-0.1]])
    found = _fitted(run, _off(replace(fine, layers={**fine.layers, name: replace(layer, bias=rows)}), 0.8, 0.0))
    assert found is not None
    assert found.layers[name].bias.shape == (STEPS, layer.out_channels)
    save_record(found, tmp_path / "model.pt")
    report = verify(found, tmp_path / "model.pt", steps=STEPS, inputs=1, threads=1)
    assert report.failures == ()
    assert report.max_code_difference == report.max_accumulator_difference == 0


def test_a_factor_of_half_or_less_is_no_correction(run: Run, fine: Record) -> None:
    assert _fitted(run, _off(fine, 4.0, 0.0)) is None


def test_where_another_layer_gives_the_output_nothing_is_fitted(run: Run, fine: Record) -> None:
    options = {"method": "minmax", "steps": STEPS, "samples": 8}
    assert _fitted(run, quantize(tiny_denoiser(), **options, keep=("conv_out",))) is None


def test_outputs_are_the_layers_in_any_order_of_their_values(run: Run) -> None:
    values = torch.arange(12.0)
    assert _same_values(values.reshape(3, 4), values.reshape(2, 2, 3).movedim(0, 2))
    assert not _same_values(values, values[:6])
    assert not _same_values(values, values + 1)
    given = {"sample": torch.zeros(1, 1, 8, 8), "timestep": torch.tensor([1.0])}
    layer, output = _heard(run.denoiser.module, "conv_out", given)
    torch.testing.assert_close(layer, output, rtol=0, atol=0)
