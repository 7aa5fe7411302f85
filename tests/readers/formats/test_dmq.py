"""A real fused projection of DMQ: channel factors, twenty activation sets, three layers of one weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.readers.recorded_files import DATA, assert_refused, recorded

FILE = DATA / "dmq.safetensors"
LAYER = "model.middle_block.1.qkv"


def test_the_recorded_projection_comes_out_as_queries_keys_and_values() -> None:
    read = recorded(FILE)
    assert list(read.model.layers) == ["middle_block.1.qkv"]
    assert sorted(read.model.floats) == ["first", "last"]
    assert read.model.timesteps[[0, 1, 19]].tolist() == [1, 51, 951]
    assert read.model.step_edges[:2].tolist() == [51, 101]
    assert list(read.layers) == ["layer0", "layer1", "layer2"]
    codes = []
    for layer in read.layers.values():
        assert (layer.kind, layer.in_channels, layer.out_channels) == ("linear", 64, 64)
        assert (layer.weight_bits, layer.activation_bits, layer.q_min, layer.q_max) == (4, 8, 0, 255)
        (part,) = layer.parts
        assert part.scale[[0, 1, 19]].tolist() == pytest.approx([0.04207175, 0.04240857, 0.038984966])
        assert part.zero_point[[0, 1, 19]].tolist() == [145, 147, 131]  # set 19 serves the lowest timesteps
        codes.append(part.w_code[0, 0, :6].tolist())
    assert codes == [[3, -3, -3, 2, -1, 0], [-4, -2, 3, -5, -1, -1], [0, 1, -1, -2, 1, -2]]


def test_inputs_are_divided_by_the_learned_factors() -> None:
    read = recorded(FILE)
    gamma = read.tensors[f"file/weight/{LAYER}.gamma"].reshape(-1)
    for layer in read.layers.values():
        assert np.array_equal(layer.parts[0].pre, np.float32(1) / gamma)


def _without_a_set(checkpoint: dict[str, Any]) -> None:
    del checkpoint["act_7"]


def _with_another_section(checkpoint: dict[str, Any]) -> None:
    checkpoint["act_20"] = {}


def _with_few_factors(checkpoint: dict[str, Any]) -> None:
    checkpoint["weight"][f"{LAYER}.gamma"] = np.ones((1, 32, 1), np.float32)


def _with_a_scale_a_channel(checkpoint: dict[str, Any]) -> None:
    checkpoint["act_3"][f"{LAYER}.aqtizer.delta"] = np.ones((1, 64, 1), np.float32)


def _with_a_factor_of_three(checkpoint: dict[str, Any]) -> None:
    for index in range(20):
        checkpoint[f"act_{index}"][f"{LAYER}.aqtizer.scale_mask"] = np.full(64, 1 / 3, np.float32)


def _with_an_unknown_layer(checkpoint: dict[str, Any]) -> None:
    checkpoint["weight"]["model.nowhere.gamma"] = np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_without_a_set, "lacks the section act_7, expected weight and act_0 to act_19"),
        (_with_another_section, "has the section act_20, which is unknown"),
        (_with_few_factors, "gamma has 32 channels, expected 64 as the weight has"),
        (_with_a_scale_a_channel, r"aqtizer.delta has shape \(1, 64, 1\), expected one number"),
        (_with_a_factor_of_three, "holds no powers of two from 1/128 to 1"),
        (_with_an_unknown_layer, "has nowhere.gamma, which unet2d has no place for"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(change: Callable[[dict[str, Any]], None], match: str) -> None:
    assert_refused(FILE, change, match)
