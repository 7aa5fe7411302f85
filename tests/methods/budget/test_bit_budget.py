"""Bits under a budget: the solver's choice is the best there is, the average keeps the budget, the record says so."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_deploy.calibration import CalibrationSource
from dq_deploy.errors import OptionError
from dq_deploy.methods import quantize
from dq_deploy.methods.budget.bit_budget import _narrowed, choose_widths, words_of_bits
from dq_deploy.models import Denoiser, quantizable_layers
from dq_deploy.record import Record, load_record, save_record
from tests.tiny import random_record, tiny_conditional_denoiser, tiny_denoiser
from tests.tiny_transformers import FLUX, tiny_transformer

QUICK: dict[str, Any] = {"method": "minmax", "steps": 3, "samples": 3}


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_the_choice_is_the_best_of_all_that_fit(data: st.DataObject) -> None:
    layers = data.draw(st.integers(1, 6))
    widths = data.draw(st.sampled_from([(4, 8), (2, 4, 8), (3, 5, 6)]))
    errors = np.array(
        data.draw(
            st.lists(
                st.lists(st.floats(0, 1e3), min_size=len(widths), max_size=len(widths)),
                min_size=layers,
                max_size=layers,
            )
        )
    )
    sizes = data.draw(st.lists(st.integers(1, 10**7), min_size=layers, max_size=layers))
    least, most = widths[0] * sum(sizes), widths[-1] * sum(sizes)
    capacity = data.draw(st.integers(least, most))
    picked = choose_widths(errors, sizes, widths, capacity)
    assert sum(size * width for size, width in zip(sizes, picked, strict=True)) <= capacity

    def error_of(choice: tuple[int, ...]) -> float:
        return float(sum(errors[i, widths.index(w)] for i, w in enumerate(choice)))

    best = min(
        error_of(choice)
        for choice in itertools.product(widths, repeat=layers)
        if sum(size * width for size, width in zip(sizes, choice, strict=True)) <= capacity
    )
    assert error_of(tuple(picked)) <= best + 1e-7 * errors.sum()


def test_a_huge_layer_does_not_hide_what_small_ones_take() -> None:
    errors = np.array([[1.0, 0], [0, 0], [0, 0]])
    assert choose_widths(errors, [1, 2, 2840539], (4, 8), 11362168) == [4, 4, 4]
    assert choose_widths(errors, [1, 2, 2840539], (4, 8), 11362168 + 4) == [8, 4, 4]


def test_a_choice_that_does_not_fit_gives_up_what_costs_least() -> None:
    errors = np.array([[5.0, 0], [1, 0], [3, 0]])
    cost = np.array([[4, 8], [4, 8], [4, 8]])
    assert _narrowed(np.array([1, 1, 1]), errors, cost, 17).tolist() == [1, 0, 0]


def test_a_capacity_below_the_least_widths_is_refused() -> None:
    with pytest.raises(OptionError, match="least widths take 40 bits, expected at most 39"):
        choose_widths(np.ones((1, 2)), [10], (4, 8), 39)


@pytest.fixture(scope="module")
def chosen() -> Record:
    return quantize(tiny_denoiser(), **QUICK, budget=5.5)


def bits_of(record: Record) -> dict[str, list[int]]:
    return {name: [layer.weight_bits, layer.activation_bits] for name, layer in record.layers.items()}


def average_of(record: Record) -> float:
    sizes = {name: sum(part.w_code.size for part in layer.parts) for name, layer in record.layers.items()}
    return sum(sizes[name] * layer.weight_bits for name, layer in record.layers.items()) / sum(sizes.values())


def test_the_record_keeps_the_budget_and_says_what_was_chosen_and_why(chosen: Record) -> None:
    entry = chosen.provenance["history"][0]
    assert entry["stage"] == "bits"
    assert entry["budget"] == 5.5
    assert entry["average_bits"] == pytest.approx(average_of(chosen))
    assert 5 < entry["average_bits"] <= 5.5
    assert entry["stored_bits"] == entry["average_bits"]
    assert entry["layers"] == bits_of(chosen)
    assert {tuple(bits) for bits in entry["layers"].values()} == {(4, 8), (8, 8)}
    assert entry["steps"] == [0, 1, 2]
    for name, by_width in entry["sensitivity"].items():
        assert list(by_width) == ["4", "8"]
        assert all(len(errors) == 3 for errors in by_width.values())
        assert chosen.provenance["options"]["layer_bits"][name] == entry["layers"][name]


def test_layers_with_bits_of_their_own_keep_them_and_count() -> None:
    named = "mid_block.resnets.0.conv1"
    record = quantize(tiny_denoiser(), **QUICK, budget=5, layer_bits={named: (6, 7)}, budget_widths=(3, 8))
    bits = bits_of(record)
    assert bits[named] == [6, 7]
    assert bits["conv_in"] == bits["conv_out"] == [8, 8]
    assert {w for name, (w, _) in bits.items() if name != named} == {3, 8}
    entry = record.provenance["history"][0]
    assert named not in entry["sensitivity"]
    assert entry["average_bits"] == pytest.approx(average_of(record))
    assert entry["average_bits"] <= 5 < entry["stored_bits"] + 1


def test_the_choice_survives_the_file(chosen: Record, tmp_path: Any) -> None:
    save_record(chosen, tmp_path / "model.pt")
    again = load_record(tmp_path / "model.pt")
    assert again.provenance == json.loads(json.dumps(dict(chosen.provenance)))


def test_an_impossible_budget_names_the_least_possible(chosen: Record) -> None:
    with pytest.raises(OptionError, match=r"budget is 4 bits a weight, expected at least (4\.\d+)") as refused:
        quantize(tiny_denoiser(), **QUICK, budget=4)
    named = float(str(refused.value).split("at least ")[1].split(":")[0])
    free = chosen.provenance["history"][0]["sensitivity"]
    sizes = {name: sum(part.w_code.size for part in layer.parts) for name, layer in chosen.layers.items()}
    least = sum(size * (4 if name in free else 8) for name, size in sizes.items()) / sum(sizes.values())
    assert least <= named <= least + 0.001


def test_a_budget_with_nothing_to_choose_is_refused() -> None:
    with pytest.raises(OptionError, match="no layer's bits are left to choose"):
        quantize(tiny_denoiser(), **QUICK, budget=5, layer_bits={"*_block*": 4}, keep=("time_embedding.*",))
    with pytest.raises(OptionError, match="no layer's bits are left to choose"):
        quantize(tiny_denoiser(block_out_channels=[64, 64]), **QUICK, budget=5, activation_bits=16)
    denoiser = tiny_denoiser()
    with pytest.raises(OptionError, match="a budget and an initial record"):
        quantize(denoiser, method="quest", budget=5, init=random_record(denoiser))


def average_of_activations(record: Record, denoiser: Denoiser) -> float:
    macs = {site.name: site.macs for site in quantizable_layers(denoiser.module, denoiser.call)}
    work = sum(macs[name] for name in record.layers)
    return sum(macs[name] * layer.activation_bits for name, layer in record.layers.items()) / work


@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param("unet", {"activation_bits": 4}, id="unet"),
        pytest.param("text", {"method": "dilatequant", "iterations": 1, "batch": 2, "split_skips": True}, id="text"),
        pytest.param("transformer", {"activation_budget_widths": (5, 8), "budget": 6}, id="transformer"),
    ],
)
def test_activations_keep_their_budget_and_readers_of_one_tensor_get_the_same(
    model: str, options: dict[str, Any]
) -> None:
    made = {"unet": tiny_denoiser, "text": tiny_conditional_denoiser, "transformer": lambda: tiny_transformer(FLUX)}
    denoiser = made[model]()
    source = CalibrationSource(kind="random") if model == "transformer" else None
    record = quantize(denoiser, **{**QUICK, **options}, activation_budget=6, calibration=source)
    entry = record.provenance["history"][0]
    assert entry["average_activation_bits"] == pytest.approx(average_of_activations(record, denoiser))
    assert 5 < entry["average_activation_bits"] <= 6
    assert entry["layers"] == bits_of(record)
    widths = {activations for _, activations in bits_of(record).values()}
    assert len(widths) > 1
    assert entry["shared_inputs"]
    for unit in entry["shared_inputs"]:
        assert len({record.layers[name].activation_bits for name in unit}) == 1
    if "budget" in options:
        assert entry["average_bits"] == pytest.approx(average_of(record))
        assert entry["average_bits"] <= 6
        assert {weights for weights, _ in bits_of(record).values()} == {4, 8}
    else:
        assert entry["budget"] is None
        assert entry["sensitivity"] == {}


def test_an_impossible_budget_of_activations_names_the_least_possible() -> None:
    with pytest.raises(
        OptionError, match=r"activation_budget is 4 bits a multiply-accumulate, expected at least 4\.\d"
    ):
        quantize(tiny_denoiser(), **QUICK, activation_budget=4)
    denoiser = tiny_denoiser()
    with pytest.raises(OptionError, match="an initial record"):
        quantize(denoiser, method="quest", activation_budget=5, init=random_record(denoiser))


def test_the_choice_in_words() -> None:
    assert words_of_bits(4.4901, [4] * 31 + [8] * 12) == "4.49 bits on average: 31 layers at 4, 12 at 8"
    assert words_of_bits(8, [8]) == "8.00 bits on average: 1 layer at 8"
