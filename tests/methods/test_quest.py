"""QuEST on a tiny denoiser: its own base or a given record, what is kept, what is said."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dq_deploy.calibration import CalibrationSource
from dq_deploy.errors import NonFiniteError, OptionError
from dq_deploy.methods import options_for, quantize
from dq_deploy.methods.finetuning.finetuner import Finetuner
from dq_deploy.methods.prepare.calibration_inputs import step_influence
from dq_deploy.methods.training.resume import discard_state
from dq_deploy.record import Record, content_sha256, load_record
from tests.tiny import tiny_conditional_denoiser, tiny_denoiser

QUICK: dict[str, Any] = {"steps": 2, "samples": 4, "iterations": 1, "batch": 4, "finetune_iterations": 4}
QUICK |= {"lr_scale": 2e-3, "lr_zero_point": 0.0, "lr_bias": 5e-3}
W4A4 = {"weight_bits": 4, "activation_bits": 4}


@functools.cache
def dilated() -> Record:
    return quantize(tiny_denoiser(), **QUICK, **W4A4)


def on_dilated(**changes: Any) -> Record:
    return quantize(tiny_denoiser(), method="quest", init=dilated(), **{**QUICK, **changes})


@functools.cache
def tuned() -> Record:
    return on_dilated()


def stages(record: Record) -> list[dict[str, Any]]:
    return [entry for entry in record.provenance["history"] if entry.get("stage") == "finetune"]


def test_its_own_base_is_reconstructed_and_then_finetuned() -> None:
    record = quantize(tiny_denoiser(), method="quest", **{**QUICK, "finetune_iterations": 1}, **W4A4)
    history = record.provenance["history"]
    assert any("block" in entry for entry in history)
    assert [entry["part"] for entry in stages(record)] == ["time-embedding", "attention"]
    assert all(layer.out_scale is not None and len(layer.out_scale) == 2 for layer in record.layers.values())


def test_a_conditional_denoiser_is_finetuned_with_its_conditions() -> None:
    denoiser = tiny_conditional_denoiser()
    start = quantize(denoiser, method="minmax", steps=2, samples=4)
    options = {**QUICK, "finetune_iterations": 1, "without": ("time-embedding",)}
    (stage,) = stages(quantize(denoiser, method="quest", init=start, **options))
    assert (stage["part"], stage["layers"]) == ("attention", 40)


def test_a_given_record_keeps_its_bits_folds_and_float_parameters_and_is_named() -> None:
    record = tuned()
    first = record.provenance["history"][0]
    assert (first["stage"], first["method"]) == ("initial record", "dilatequant")
    assert first["content_sha256"] == content_sha256(dilated())
    assert record.provenance["method"] == "quest"
    assert record.provenance["options"]["activation_bits"] == 4
    assert any(entry["kept"] != "start" for entry in stages(record))
    for name, layer in record.layers.items():
        before = dilated().layers[name]
        assert (layer.weight_bits, layer.activation_bits, layer.fold) == (
            before.weight_bits,
            before.activation_bits,
            before.fold,
        )
        np.testing.assert_array_equal(layer.parts[0].pre, before.parts[0].pre)
    for key, value in dilated().float_parameters.items():
        np.testing.assert_array_equal(record.float_parameters[key], value)


def test_the_history_has_the_influence_that_held_out_steps_count_by() -> None:
    influence = step_influence(tiny_denoiser(), options_for(method="quest", **QUICK), CalibrationSource())
    assert [entry["influence"] for entry in stages(tuned())] == [pytest.approx(influence, rel=1e-3)] * 2


def test_without_iterations_the_layers_are_the_record_s_own() -> None:
    record = on_dilated(finetune_iterations=0)
    assert all(record.layers[name] is layer for name, layer in dilated().layers.items())


def test_another_number_of_steps_is_refused_before_anything_runs() -> None:
    with pytest.raises(OptionError, match=r"visits 3 steps .* the initial record has 2 steps"):
        on_dilated(steps=3)


class StopHereError(Exception):
    """Ends a run from its progress callback."""


def test_a_diverged_stage_leaves_the_one_before_as_a_record_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "state"
    whole = Finetuner._backward
    with monkeypatch.context() as patch:
        patch.setattr(
            Finetuner,
            "_backward",
            lambda self, module, floats, *rest: (
                float("nan") if any("to_q" in name for name in floats.spread) else whole(self, module, floats, *rest)
            ),
        )
        with pytest.raises(NonFiniteError, match=r"stage attention.*is a record, .*time-embedding\.record") as caught:
            on_dilated(resume_dir=folder)
    kept = load_record(folder / "block-time-embedding.record.safetensors")
    assert str(folder) in str(caught.value)
    assert [entry["part"] for entry in stages(kept)] == ["time-embedding"]
    lower = on_dilated(resume_dir=folder, lr_scale=1e-3)
    assert [entry["learning_rates"]["scale"] for entry in stages(lower)] == [2e-3, 1e-3]
    discard_state(folder)
    assert not folder.exists()


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    def watch(report: Any) -> None:
        if report.stage == "finetune" and report.block == "attention":
            raise StopHereError

    with pytest.raises(StopHereError):
        on_dilated(resume_dir=tmp_path, progress=watch)
    assert content_sha256(on_dilated(resume_dir=tmp_path)) == content_sha256(tuned())


@pytest.mark.parametrize("outputs", [True, False])
def test_where_nothing_gets_better_a_resumed_run_gives_the_record_too(tmp_path: Path, outputs: bool) -> None:
    """Rates this high make every stage keep what it began with."""
    wrong = {"lr_scale": 1.0, "lr_bias": 5.0, "outputs": outputs}

    def watch(report: Any) -> None:
        if report.stage == "finetune" and report.block == "attention":
            raise StopHereError

    with pytest.raises(StopHereError):
        on_dilated(resume_dir=tmp_path, progress=watch, **wrong)
    resumed = on_dilated(resume_dir=tmp_path, **wrong)
    assert {entry["kept"] for entry in stages(resumed)} == {"start"}
    assert content_sha256(resumed) == content_sha256(on_dilated(**wrong))
    assert all((layer.out_scale is not None) == outputs for layer in resumed.layers.values())
    for name, layer in dilated().layers.items():
        for part, same in zip(layer.parts, resumed.layers[name].parts, strict=True):
            np.testing.assert_array_equal(part.w_code, same.w_code)
