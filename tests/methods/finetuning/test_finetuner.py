"""Selective finetuning on a tiny denoiser: what moves, what stays, and when it goes back."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dq_deploy.calibration import CalibrationSource
from dq_deploy.errors import NonFiniteError, OptionError
from dq_deploy.methods import options_for, quantize
from dq_deploy.methods.finetuning import finetuner
from dq_deploy.methods.finetuning.finetuner import Finetuner
from dq_deploy.methods.finetuning.held_out import train_and_held_out
from dq_deploy.methods.finetuning.stages import STAGES, Stage, stages_of
from dq_deploy.methods.prepare.calibration_inputs import collect_inputs
from dq_deploy.methods.training.pieces import Pieces
from dq_deploy.models import Denoiser, quantizable_layers
from dq_deploy.record import Record
from dq_deploy.simulation.fake_quant import simulate
from tests.calibration.recorded_runs import recorded
from tests.tiny import tiny_conditional_denoiser, tiny_denoiser

SHARED: dict[str, Any] = {"steps": 2, "samples": 16, "weight_bits": 4, "activation_bits": 4, "outputs": False}
RATES = {"lr_scale": 2e-2, "lr_zero_point": 0.0, "lr_bias": 5e-2}


@functools.cache
def denoiser() -> Denoiser:
    return tiny_denoiser()


@functools.cache
def inputs(seed: int) -> dict[str, Any]:
    return recorded(denoiser(), steps=2, samples=16, seed=seed).flat()


@functools.cache
def start() -> Record:
    """A record that has something to learn: ranges that clip, and shifted outputs of attention."""
    record = quantize(denoiser(), method="minmax", **SHARED)
    layers = {}
    for name, layer in record.layers.items():
        parts = tuple(replace(part, scale=part.scale * np.float32(0.6)) for part in layer.parts)
        bias = layer.bias + np.float32(0.3) if name.endswith("to_out.0") else layer.bias
        layers[name] = replace(layer, parts=parts, bias=bias)
    return replace(record, layers=layers)


def tuner(**changes: Any) -> Finetuner:
    options = options_for(method="quest", **{**SHARED, **RATES, "finetune_iterations": 4, "batch": 8, **changes})
    return Finetuner(denoiser(), inputs(0), options, lambda report: None, stages=1)


def attention() -> Stage:
    return stages_of(start().layers, options_for(method="quest"))[1]


@functools.cache
def tuned() -> tuple[Record, dict[str, Any]]:
    return tuner(finetune_iterations=12).run(attention(), 0, start())


def output_error(record: Record) -> float:
    given = inputs(9)
    x, timestep = torch.from_numpy(given["sample"]), torch.from_numpy(given["timestep"])
    with torch.no_grad():
        expected = denoiser().module(x, timestep, return_dict=False)[0]
        return float((simulate(record)(x, timestep) - expected).square().mean())


def test_stages_take_the_time_projections_and_what_belongs_to_attention() -> None:
    conditional = tiny_conditional_denoiser()
    names = [site.name for site in quantizable_layers(conditional.module, conditional.call)]
    time, attended = stages_of(names, options_for(method="quest"))
    assert (time.name, attended.name) == tuple(STAGES)
    assert {name.rpartition(".")[2] for name in time.layers} == {"time_emb_proj"}
    assert {".".join(name.split(".")[-2:]) for name in attended.layers} >= {"attn1.to_q", "attn2.to_k", "net.2"}
    assert not any("conv" in name or "proj_in" in name for name in attended.layers)


def test_parts_left_out_leave_their_stage_or_loss_out() -> None:
    def left(*without: str) -> list[str]:
        return [s.name for s in stages_of(start().layers, options_for(method="quest", without=without))]

    assert left("time-embedding") == ["attention"]
    assert left("attention", "local-loss") == ["time-embedding"]
    with pytest.raises(OptionError, match="expected one of them to be left in"):
        left("global-loss", "local-loss")


def test_the_error_falls_on_inputs_that_were_never_seen() -> None:
    record, note = tuned()
    assert note["share_of_error_left"] < 0.95
    assert output_error(record) < 0.95 * output_error(start())


def test_only_the_stage_s_weights_move_and_activation_scales_of_all_but_the_time_projections() -> None:
    record, note = tuned()
    moved = []
    for name, layer in record.layers.items():
        before, after = start().layers[name].parts[0], layer.parts[0]
        assert np.array_equal(before.scale, after.scale) == name.endswith("time_emb_proj"), name
        if not np.array_equal(before.w_code, after.w_code):
            moved.append(name)
        if name not in attention().layers:
            np.testing.assert_array_equal(before.w_code, after.w_code)
            np.testing.assert_array_equal(before.weight_scale, after.weight_scale)
            np.testing.assert_array_equal(start().layers[name].bias, layer.bias)
    assert moved
    assert 0 < note["share_of_weights"] < 0.2


def test_the_time_projections_are_trained_with_their_own_activation_scales_alone() -> None:
    time, attended = stages_of(start().layers, options_for(method="quest"))
    assert (time.local, attended.local) == (True, False)  # attention is trained on the denoiser's output alone
    assert not set(time.scales) & set(attended.scales)
    assert set(time.scales) | set(attended.scales) == set(start().layers)
    record, note = tuner(finetune_iterations=2, lr_bias=0.5).run(time, 0, start())
    assert note["kept"] != "start"
    for name, layer in record.layers.items():
        before = start().layers[name].parts[0].scale
        assert np.array_equal(before, layer.parts[0].scale) == (name not in time.layers), name


def test_a_held_out_step_counts_by_how_far_its_error_moves_the_sample() -> None:
    weighed = Finetuner(
        denoiser(), inputs(0), options_for(method="quest", **SHARED), print, stages=1, influence=np.array([1.0, 2.0])
    )
    errors, before = torch.tensor([1.0, 0.5]).double(), torch.tensor([1.0, 1.0]).double()
    assert weighed._share_left(errors, before) == pytest.approx((1 + 4 * 0.5) / 5)
    assert tuner()._share_left(errors, before) == pytest.approx(0.75)  # not known: all alike


def test_blocks_computed_again_and_small_pieces_train_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = tuner(finetune_iterations=1, batch=4).run(attention(), 0, start())
    monkeypatch.setattr(finetuner, "pieces_that_fit", lambda *_args, **_more: Pieces(size=2, again=True))
    pieces, _ = tuner(finetune_iterations=1, batch=4).run(attention(), 0, start())
    for name, layer in whole.layers.items():
        np.testing.assert_allclose(pieces.layers[name].parts[0].scale, layer.parts[0].scale, rtol=1e-2)


def test_one_input_that_does_not_fit_is_refused_with_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    small = tuner(finetune_iterations=1, batch=4)
    monkeypatch.setattr(finetuner, "GIB", 1000)
    with pytest.raises(OptionError, match=r"memory_gib is 2, expected at least .*: training stage attention keeps"):
        small.run(attention(), 0, start())


def test_no_iterations_change_nothing() -> None:
    record, note = tuner(finetune_iterations=0).run(attention(), 0, start())
    assert record is start()
    assert note["kept"] == "start"


def test_training_that_makes_it_worse_goes_back_with_lower_rates_and_keeps_the_start() -> None:
    record, note = tuner(finetune_iterations=4, lr_scale=10.0).run(attention(), 0, start())
    assert note["times_backed_off"] > 0
    assert note["share_of_error_left"] <= 1
    assert (record is start()) == (note["kept"] == "start")


def test_float_outputs_that_do_not_fit_in_memory_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stored, _ = tuner(finetune_iterations=1, batch=4).run(attention(), 0, start())
    again = tuner(finetune_iterations=1, batch=4)
    monkeypatch.setattr(finetuner, "STORED_SHARE", 0)
    record, _ = again.run(attention(), 0, start())
    for name, layer in stored.layers.items():
        np.testing.assert_array_equal(layer.parts[0].scale, record.layers[name].parts[0].scale)


def test_steps_that_share_quantizers_still_share_them() -> None:
    options = {**SHARED, "steps": 2, "static": True}
    record, _ = tuner(finetune_iterations=1).run(attention(), 0, quantize(denoiser(), method="minmax", **options))
    assert all(part.steps == 1 for layer in record.layers.values() for part in layer.parts)


def test_a_loss_that_is_not_finite_names_stage_and_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0, float("nan")])
    monkeypatch.setattr(Finetuner, "_backward", lambda *_: next(losses))
    with pytest.raises(NonFiniteError, match="stage attention: the loss is nan at iteration 2, expected a finite"):
        tuner().run(attention(), 0, start())


@pytest.mark.parametrize("choice", ["uniform", "normal-biased", "tdac"])
def test_no_trajectory_is_both_trained_on_and_held_out(choice: str) -> None:
    options = options_for(method="quest", **{**SHARED, "steps": 4, "samples": 24}, calibration_choice=choice)
    drawn = collect_inputs(denoiser(), options, CalibrationSource(), lambda report: None).inputs
    order, held = train_and_held_out(drawn)
    assert sorted(order) == list(range(len(drawn["step"])))
    trained, last = drawn["trajectory"][order[:-held]], drawn["trajectory"][order[-held:]]
    assert not set(trained) & set(last)
    assert 8 <= held <= len(order) / 4


def test_inputs_of_no_known_trajectory_are_held_out_from_the_end() -> None:
    order, held = train_and_held_out({"step": np.arange(80) % 4})
    assert order.tolist() == list(range(80))
    assert held == 8
    assert train_and_held_out({"step": np.arange(4)})[1] == 1
