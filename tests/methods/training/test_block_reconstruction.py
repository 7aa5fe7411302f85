"""Block reconstruction of one or two blocks of a tiny denoiser: what each setting does, what stops it."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dq_deploy.calibration.sharding import Share
from dq_deploy.errors import NonFiniteError
from dq_deploy.methods import Progress, options_for
from dq_deploy.methods.blocks.nested_values import gathered
from dq_deploy.methods.prepare.initial_layers import initial_layers
from dq_deploy.methods.prepare.preparation import prepare
from dq_deploy.methods.progress import silent
from dq_deploy.methods.ranges.step_ranges import collect_ranges
from dq_deploy.methods.training.block_loss import BlockLoss, TrainedBlock
from dq_deploy.methods.training.block_reconstruction import BlockReconstruction, Reconstructed
from dq_deploy.methods.training.reconstruction import Reconstruction, adaround_settings, bkd_settings, fbr_settings
from dq_deploy.simulation.fake_quant import StepContext
from tests.tiny import tiny_denoiser

STEPS = 2
FIRST, SECOND = "mid_block.resnets.0", "mid_block.attentions.0"


def options_of(method: str) -> Any:
    return options_for(
        method=method,
        steps=STEPS,
        weight_bits=4,
        activation_bits=4,
        split_skips=False,
        layer_bits={"*.time_emb_proj": (4, 4)},
        iterations=15,
        batch=8,
        lr_rounding=0.3,
    )


OPTIONS, DILATEQUANT, DMQ = options_of("eda-dm"), options_of("dilatequant"), options_of("dmq")


@functools.cache
def beginning() -> tuple[Any, ...]:
    prepared = prepare(tiny_denoiser(), OPTIONS)
    rng = np.random.default_rng(0)
    step = np.arange(32) % STEPS
    inputs = {
        "sample": rng.standard_normal((32, 1, 8, 8)).astype(np.float32),
        "timestep": (step * 500).astype(np.float32),
        "step": step,
    }
    ranges = collect_ranges(prepared, inputs, steps=STEPS, draw_values=True)
    layers = initial_layers(prepared, ranges, OPTIONS, search=True)
    chosen = {name: layer for name, layer in layers.items() if name.startswith((f"{FIRST}.", f"{SECOND}."))}
    return prepared, chosen, ranges, inputs


def train(settings: Reconstruction, progress: Any = silent) -> Reconstructed:
    return BlockReconstruction(*beginning(), OPTIONS, settings, progress).run(None)


def error_of(trained: Reconstructed) -> float:
    """Error of the second block, behind the first."""
    return trained.history[1]["relative_error"]


def codes_of(trained: Reconstructed) -> np.ndarray:
    return np.concatenate([part.w_code.ravel() for layer in trained.layers.values() for part in layer.parts])


@functools.cache
def fbr() -> Reconstructed:
    return train(fbr_settings(OPTIONS))


@pytest.mark.parametrize("settings", [bkd_settings(DILATEQUANT), fbr_settings(OPTIONS), adaround_settings(DMQ)])
def test_training_lowers_the_error_that_rounding_to_nearest_leaves(settings: Reconstruction) -> None:
    settings = replace(settings, layer_loss=0.0, activation_drop=0.0, input_mix=0.0)
    assert error_of(train(settings)) < 0.96 * error_of(train(replace(settings, iterations=0)))


@pytest.mark.parametrize(
    "change", [{"layer_loss": 0.0}, {"activation_drop": 0.0}, {"input_mix": 0.0}, {"rounding_penalty": 0.0}]
)
def test_each_part_of_the_fine_grained_reconstruction_has_an_effect(change: dict[str, float]) -> None:
    other = train(replace(fbr_settings(OPTIONS), **change))  # type: ignore[arg-type]
    assert not np.array_equal(codes_of(fbr()), codes_of(other))


def test_an_inner_layer_s_error_counts_as_large_as_it_is() -> None:
    """In relation to the block's output: a layer of small values is not to count as much as one of large ones."""
    torch.manual_seed(0)
    mine, whole = (torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)) for _ in range(2))
    x = torch.randn(4, 3)
    with torch.no_grad():
        hidden, target = whole[0](x), whole(x)
        errors = (mine(x) - target).square().mean() + 0.5 * (mine[0](x) - hidden).square().mean()
    given = gathered([(slice(0, 4), ((x,), {}))], 4, (1,))
    block = TrainedBlock(
        module=mine,
        float_module=whole,
        layers={"0": SimpleNamespace(parts=()), "1": SimpleNamespace(parts=())},  # type: ignore[dict-item]
        given=given,
        float_given=given,
        target=gathered([(slice(0, 4), target)], 4, (1,)),
        step=torch.zeros(4, dtype=torch.int64),
        share=Share(step=np.zeros(4, np.int64)),
        context=StepContext(),
    )
    settings = replace(fbr_settings(OPTIONS), layer_loss=0.5, input_mix=0.0, rounding_penalty=0.0)
    with BlockLoss(block, settings, torch.Generator()).watching() as loss_of:
        loss = loss_of(torch.arange(4), 0)
    assert loss.item() == pytest.approx(float(errors / target.square().mean()), rel=1e-5)


def test_the_same_seed_gives_the_same_layers() -> None:
    again = train(fbr_settings(OPTIONS))
    assert again.history == fbr().history
    np.testing.assert_array_equal(codes_of(again), codes_of(fbr()))


def test_adaround_alone_leaves_scales_zero_points_and_biases_as_they_are() -> None:
    start = beginning()[1]
    for name, layer in train(adaround_settings(DMQ)).layers.items():
        np.testing.assert_array_equal(layer.bias, start[name].bias)
        for mine, was in zip(layer.parts, start[name].parts, strict=True):
            for field in ("scale", "zero_point", "weight_scale"):
                np.testing.assert_array_equal(getattr(mine, field), getattr(was, field))
            assert np.abs(mine.w_code.astype(int) - was.w_code).max() <= 1


def test_the_rounding_penalty_has_an_effect() -> None:
    settings = replace(adaround_settings(DMQ), rounding_penalty=0.0)
    penalised = train(replace(settings, rounding_penalty=1.0))
    assert not np.array_equal(codes_of(train(settings)), codes_of(penalised))


def test_weights_of_samples_are_asked_for_with_their_steps_and_losses() -> None:
    seen = []

    def weigh(step: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        seen.append((step.shape, losses.shape, losses.requires_grad))
        return torch.ones_like(losses)

    settings = replace(adaround_settings(DMQ), iterations=2)
    weighted, plain = train(replace(settings, sample_weights=weigh)), train(settings)
    assert seen == [((8,), (8,), False)] * 4
    assert error_of(weighted) == pytest.approx(error_of(plain), rel=0.05)


def test_a_block_that_training_makes_worse_is_left_untrained_and_says_so() -> None:
    reports: list[Progress] = []
    settings = replace(bkd_settings(DILATEQUANT), rates={"scale": 50.0}, worse_allowed=1.0, iterations=3)
    trained = train(settings, reports.append)
    assert all(note["note"].startswith("left untrained: its relative error was") for note in trained.history)
    assert any(f"block {FIRST} is left untrained" in report.note for report in reports)
    start = beginning()[1]
    np.testing.assert_array_equal(
        trained.layers[f"{FIRST}.conv1"].parts[0].scale, start[f"{FIRST}.conv1"].parts[0].scale
    )


def after(calls: int) -> Any:
    """Sample weights that are NaN from so many iterations on."""
    count = 0

    def weigh(step: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return torch.full_like(losses, torch.nan if count > calls else 1.0)

    return weigh


def test_a_loss_of_nan_names_the_block_and_the_last_good_one() -> None:
    settings = replace(adaround_settings(DMQ), iterations=2)
    with pytest.raises(NonFiniteError, match=rf"block {FIRST}: the loss is nan at iteration 1.*no block before it"):
        train(replace(settings, sample_weights=after(0)))
    with pytest.raises(NonFiniteError, match=rf"block {SECOND}: .* iteration 2.*last good block is {FIRST}"):
        train(replace(settings, sample_weights=after(3)))


def test_a_value_that_leaves_the_finite_numbers_in_the_last_iteration_is_noticed() -> None:
    def weigh(step: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        return torch.full_like(losses, 1e38)

    with pytest.raises(NonFiniteError, match=rf"block {FIRST}: "):
        train(replace(bkd_settings(DILATEQUANT), rates={"weight": 1e38}, iterations=1, sample_weights=weigh))


def test_both_inputs_of_a_block_count_towards_memory() -> None:
    engines = [
        BlockReconstruction(*beginning(), OPTIONS, settings, silent)
        for settings in (adaround_settings(DMQ), fbr_settings(OPTIONS))
    ]
    peaks = [engine.walk.reference.flow.peak_bytes for engine in engines]
    assert peaks[0] < peaks[1] < 2 * peaks[0]
