"""Trajectories of a quantized model, and finetuning on them behind another method."""

from __future__ import annotations

import functools
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dq_deploy.calibration import CalibrationSource
from dq_deploy.calibration.sharding import Workers
from dq_deploy.errors import OptionError
from dq_deploy.methods import options_for, quantize
from dq_deploy.methods.finetuning.finetuner import Finetuner
from dq_deploy.methods.finetuning.own_trajectories import answer_of_record, answered_by, own_inputs
from dq_deploy.methods.progress import silent
from dq_deploy.methods.run import Run, check_sharable
from dq_deploy.models import Denoiser, call_denoiser
from dq_deploy.record import Record, content_sha256
from dq_deploy.simulation.fake_quant import simulate
from tests.tiny import tiny_denoiser

SHARED: dict[str, Any] = {"steps": 4, "samples": 8, "weight_bits": 4, "activation_bits": 4, "outputs": False}
BEHIND = {"without": "distillation", "batch": 4, "finetune": True, "finetune_iterations": 2}
BEHIND |= {"own_trajectories": True, "picture_weights": True}


@functools.cache
def denoiser() -> Denoiser:
    return tiny_denoiser()


@functools.cache
def start() -> Record:
    return quantize(denoiser(), method="minmax", **SHARED)


@functools.cache
def behind() -> Record:
    return quantize(denoiser(), method="dilatequant", preset="fast", **SHARED, **BEHIND)


def run(**changes: Any) -> Run:
    return Run(denoiser=denoiser(), source=CalibrationSource(**changes), progress=silent)


@torch.no_grad()
def test_each_step_is_given_what_the_record_s_own_steps_made() -> None:
    options = options_for(method="quest", **SHARED)
    own, of_float = own_inputs(run(), options, start()).inputs, own_inputs_of_float(options)
    first = own["step"] == 3
    np.testing.assert_array_equal(own["sample"][first], of_float["sample"][first])
    assert not np.array_equal(own["sample"][~first], of_float["sample"][~first])
    module = denoiser().module
    given = {"sample": torch.from_numpy(own["sample"][:3]), "timestep": torch.from_numpy(own["timestep"][:3])}
    simulation = simulate(start())
    with answered_by(module, partial(answer_of_record, simulation)):
        answered = call_denoiser(module, given)
    np.testing.assert_array_equal(answered, simulation(**given))


def own_inputs_of_float(options: Any) -> Any:
    from dq_deploy.methods.prepare.calibration_inputs import collect_inputs

    return collect_inputs(denoiser(), options, CalibrationSource(), silent).inputs


def test_the_float_module_is_left_as_it_was() -> None:
    module = denoiser().module

    def stop(*_: Any) -> None:
        raise RuntimeError("stop")

    with answered_by(module, stop), pytest.raises(RuntimeError, match="stop"):
        module(torch.zeros(1, 1, 8, 8), 1)
    assert "forward" not in module.__dict__


def test_another_method_s_record_is_finetuned_behind_it_and_tells() -> None:
    stages = [note for note in behind().provenance["history"] if note.get("stage") == "finetune"]
    assert [note["part"] for note in stages] == ["time-embedding", "attention"]
    assert {note["trajectories"] for note in stages} == {"quantized model"}
    assert all(note["picture_weights"] and note["share_of_error_left"] <= 1 for note in stages)
    assert behind().provenance["method"] == "dilatequant"
    assert behind().provenance["options"]["finetune_iterations"] == 2


def test_a_run_stopped_between_two_stages_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Finetuner.run

    def stopped(self: Finetuner, stage: Any, number: int, record: Record) -> Any:
        if number:
            raise KeyboardInterrupt
        return whole(self, stage, number, record)

    given = {"method": "dilatequant", "preset": "fast", "resume_dir": tmp_path / "state", **SHARED, **BEHIND}
    with monkeypatch.context() as patch:
        patch.setattr(Finetuner, "run", stopped)
        with pytest.raises(KeyboardInterrupt):
            quantize(denoiser(), **given)
    assert content_sha256(quantize(denoiser(), **given)) == content_sha256(behind())


@pytest.mark.parametrize("name", ["own_trajectories", "picture_weights"])
def test_inputs_of_no_sampling_run_are_refused(name: str) -> None:
    given = {"method": "dilatequant", "finetune": True, name: True, **SHARED}
    with pytest.raises(OptionError, match=f"{name} was given with noise as calibration inputs, expected a sampling"):
        quantize(denoiser(), calibration=CalibrationSource(kind="random"), **given)


@pytest.mark.parametrize("name", ["own_trajectories", "picture_weights"])
def test_an_option_of_no_finetuning_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name} was given without finetune, expected it, or method quest"):
        options_for(method="dilatequant", **{name: True})


def test_processes_that_share_the_work_are_refused() -> None:
    workers = Workers()
    object.__setattr__(workers, "shards", 8)
    with pytest.raises(OptionError, match="got `finetune` in processes that share the work"):
        check_sharable(workers, options_for(method="dilatequant", finetune=True))


def test_a_record_given_to_quest_is_finetuned_on_its_own_trajectories() -> None:
    given = {"steps": 4, "samples": 8, "outputs": False, "finetune_iterations": 1, "batch": 4}
    record = quantize(denoiser(), method="quest", init=start(), own_trajectories=True, **given)
    assert record.provenance["history"][-1]["trajectories"] == "quantized model"
    assert replace(record, provenance={}).layers.keys() == start().layers.keys()
