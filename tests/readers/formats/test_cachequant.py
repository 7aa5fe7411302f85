"""A real shortcut of CacheQuant: a table entry a sampling step, noisiest first, with trained zero points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.readers.recorded_files import DATA, assert_refused, recorded, with_tensor

FILE = DATA / "cachequant.safetensors"
LAYER = "model.up.0.block.0.nin_shortcut"


def test_the_recorded_layer_comes_out_with_tables_of_rising_timesteps() -> None:
    read = recorded(FILE)
    assert list(read.model.layers) == ["up.0.block.0.nin_shortcut"]
    assert read.model.timesteps[:3].tolist() == [0, 2, 8]
    assert read.model.step_edges[:3].tolist() == [1, 5, 13.5]
    layer = read.layers["layer0"]
    assert (layer.kind, layer.in_channels, layer.out_channels, layer.q_min, layer.q_max) == ("conv2d", 64, 32, 0, 255)
    first, second = layer.parts
    assert [len(part.pre) for part in layer.parts] == [32, 32]
    assert first.steps == second.steps == 20
    table = read.tensors[f"file//{LAYER}.act_quantizer.delta"]
    assert np.array_equal(first.scale, table[::-1])
    assert first.zero_point[[0, 1, 19]].tolist() == [139, 142, 134]
    assert second.zero_point[[0, 1, 19]].tolist() == [132, 137, 145]


def test_zero_points_of_learned_weights_are_rounded_down() -> None:
    read = recorded(FILE)
    first, second = read.layers["layer0"].parts
    held = read.tensors[f"file//{LAYER}.weight_quantizer.zero_point"].ravel()
    assert held[:3].tolist() == pytest.approx([6.9521856, 6.0195556, 6.283191])
    assert first.w_zero_point[0, :4].tolist() == [-2, -2, -2, 1]  # 6, 6, 6 and 9 of the codes 0 to 15, less 8
    assert second.w_zero_point[0, :4].tolist() == [0, -1, -1, -3]
    assert first.w_code[0, 0, :6, 0, 0].tolist() == [-3, -5, -1, -5, 0, -6]


def test_the_trained_weight_is_the_file_s() -> None:
    read = recorded(FILE)
    (note,) = read.model.notes
    assert note["changed"] == ["up.0.block.0.nin_shortcut.bias", "up.0.block.0.nin_shortcut.weight"]
    bias = read.layers["layer0"].bias
    assert bias is not None
    assert bias[0] == pytest.approx(-0.01261002)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("act_quantizer.delta", np.ones(19, np.float32), "has 19 scales and 20 zero points, expected as many"),
        ("act_quantizer.delta", np.ones((20, 64), np.float32), r"has shape \(20, 64\), expected one number for each"),
        ("act_quantizer.zero_point", np.full(20, 1e9, np.float32), r"holds 1e\+09, expected a zero point"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(name: str, value: np.ndarray, match: str) -> None:
    assert_refused(FILE, with_tensor(f"{LAYER}.{name}", value), match)


def test_halves_of_other_numbers_of_steps_are_refused() -> None:
    def change(checkpoint: dict[str, Any]) -> None:
        for end in ("delta", "zero_point"):
            checkpoint[f"{LAYER}.act_quantizer.{end}"] = np.ones(5, np.float32)

    assert_refused(FILE, change, r"activation tables of \[5, 20\] steps, expected one number of steps")
