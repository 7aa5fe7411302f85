"""Training on the picture's own error: gradients through the sampler, the best state by held-out pictures."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dq_deploy import save_record, verify
from dq_deploy.calibration import CalibrationSource
from dq_deploy.calibration.sharding import Workers
from dq_deploy.errors import OptionError
from dq_deploy.methods import options_for, quantize
from dq_deploy.methods.finetuning import picture_training
from dq_deploy.methods.finetuning.picture_training import _batch, _Training, trained_on_pictures
from dq_deploy.methods.progress import silent
from dq_deploy.methods.run import Run, check_sharable
from dq_deploy.models import Denoiser
from dq_deploy.record import Record, content_sha256
from tests.tiny import tiny_conditional_denoiser, tiny_denoiser

SHARED: dict[str, Any] = {"steps": 3, "samples": 4, "weight_bits": 8, "activation_bits": 8}
ITERATIONS = 8
FEW: dict[str, Any] = {"PICTURES": 8, "HELD_OUT": 4, "BATCH": 4, "RATES": {"weight_scale": 5e-3, "bias": 5e-3}}
"""A tiny model learns in few large steps."""


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FEW.items():
        monkeypatch.setattr(picture_training, name, value)


@functools.cache
def denoiser() -> Denoiser:
    return tiny_denoiser()


@functools.cache
def start() -> Record:
    """A record whose outputs are all a little too small."""
    record = quantize(denoiser(), method="minmax", **SHARED)
    name = list(record.layers)[-1]
    parts = tuple(
        replace(p, weight_scale=(0.97 * p.weight_scale).astype(np.float32)) for p in record.layers[name].parts
    )
    return replace(record, layers={**record.layers, name: replace(record.layers[name], parts=parts)})


def run(**changes: Any) -> Run:
    return Run(denoiser=denoiser(), source=CalibrationSource(), progress=silent, **changes)


def asked(iterations: int = ITERATIONS, **changes: Any) -> Any:
    return options_for(method="minmax", picture_iterations=iterations, **{**SHARED, **changes})


@functools.cache
def trained() -> Record:
    return trained_on_pictures(run(), asked(), start())


def test_held_out_pictures_get_nearer_to_float_and_codes_stay(tmp_path: Path) -> None:
    note = trained().provenance["history"][-1]
    assert note["stage"] == "picture-training"
    assert note["kept"].startswith("iteration ")
    assert note["held_out_db_gained"] > 1
    assert note["layers"] == len(start().layers)
    for name, layer in trained().layers.items():
        before = start().layers[name]
        for part, was in zip(layer.parts, before.parts, strict=True):
            np.testing.assert_array_equal(part.w_code, was.w_code)
            np.testing.assert_array_equal(part.scale, was.scale)
            np.testing.assert_array_equal(part.zero_point, was.zero_point)
    assert any(not np.array_equal(layer.bias, start().layers[n].bias) for n, layer in trained().layers.items())
    save_record(trained(), tmp_path / "model.pt")
    report = verify(trained(), tmp_path / "model.pt", steps=3, inputs=1, threads=1)
    assert report.failures == ()
    assert report.max_code_difference == report.max_accumulator_difference == 0


def test_output_tables_are_those_of_the_trained_layers() -> None:
    tables = {name: layer.out_scale for name, layer in trained().layers.items()}
    assert all(table is not None for table in tables.values())
    assert any(not np.array_equal(table, start().layers[name].out_scale) for name, table in tables.items())


def test_the_gradient_of_the_last_bias_is_that_of_finite_differences() -> None:
    training = _Training(run(), asked(), start())
    training._set_units(1)
    training.wanted = training._floats(range(4))
    layer = list(training.layers.values())[-1]
    training.sampling._steps = 1  # one step: nothing is rounded behind the last layer
    loss = training._errors([0, 1], training._drawn([0, 1], gradients=True)).log().sum()
    loss.backward()
    got = layer.e.grad.clone()
    found, far = [], 1e-2
    for sign in (far, -far):
        layer.e.data.fill_(sign)
        found.append(float(training._errors([0, 1], training._drawn([0, 1])).log().sum()))
    assert got.shape == (1,)
    np.testing.assert_allclose(float(got), (found[0] - found[1]) / (2 * far), rtol=0.02)


def test_memory_for_one_picture_gives_the_gradients_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    grads = []
    for size, again in ((4, False), (1, True)):
        training = _Training(run(), asked(), start())
        training.wanted = training._floats(range(8))
        optimizer = picture_training.torch.optim.Adam(training.groups)
        monkeypatch.setattr(optimizer, "step", lambda: None)
        training._iteration(optimizer, 0, picture_training.Pieces(size=size, again=again))
        grads.append(picture_training.torch.cat([value.grad.flatten() for value in training.values]))
    assert float((grads[0] - grads[1]).norm()) < 1e-3 * float(grads[0].norm())


def test_what_does_not_help_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_training, "RATES", {"weight_scale": 3.0, "bias": 3.0})
    found = trained_on_pictures(run(), asked(1), start())
    note = found.provenance["history"][-1]
    assert (note["kept"], note["held_out_db_gained"]) == ("start", 0)
    assert all(layer is start().layers[name] for name, layer in found.layers.items())


def test_a_stopped_training_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _Training._iteration

    def stopped(self: _Training, optimizer: Any, i: int, pieces: Any) -> float:
        if i == 6:
            raise KeyboardInterrupt
        return whole(self, optimizer, i, pieces)

    with monkeypatch.context() as patch:
        patch.setattr(_Training, "_iteration", stopped)
        with pytest.raises(KeyboardInterrupt):
            trained_on_pictures(run(resume_dir=tmp_path), asked(), start())
    seen: list[int] = []

    def noted(self: _Training, optimizer: Any, i: int, pieces: Any) -> float:
        seen.append(i)
        return whole(self, optimizer, i, pieces)

    monkeypatch.setattr(_Training, "_iteration", noted)
    found = trained_on_pictures(run(resume_dir=tmp_path), asked(), start())
    assert seen == [4, 5, 6, 7]
    assert content_sha256(found) == content_sha256(trained())
    other = replace(start(), layers=dict(trained().layers))
    seen.clear()
    trained_on_pictures(run(resume_dir=tmp_path), asked(4), other)
    assert seen == [0, 1, 2, 3]  # the state is of another record


def test_every_picture_is_trained_on_before_one_comes_again() -> None:
    first = [picture for i in range(2) for picture in _batch(7, i)]
    assert sorted(first) == list(range(8))
    assert _batch(7, 0) == _batch(7, 0)
    assert [*_batch(7, 2), *_batch(7, 3)] != first


def test_a_method_has_it_as_its_last_stage_with_conditions_and_inputs_of_no_run_are_refused() -> None:
    given = {"method": "minmax", **SHARED, "picture_iterations": 1}
    found = quantize(tiny_conditional_denoiser(), **given)
    assert found.provenance["history"][-1]["stage"] == "picture-training"
    assert found.provenance["options"]["picture_iterations"] == 1
    with pytest.raises(OptionError, match="`picture_iterations` was given with noise as calibration inputs"):
        quantize(denoiser(), **given, calibration=CalibrationSource(kind="random"))
    with pytest.raises(OptionError, match="got `picture_iterations` in processes that share the work"):
        check_sharable(Workers(shards=4), options_for(**given))
    with pytest.raises(OptionError, match="picture_iterations is -1, expected"):
        options_for(**{**given, "picture_iterations": -1})
