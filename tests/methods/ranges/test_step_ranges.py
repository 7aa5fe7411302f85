"""Ranges of steps: the lowest and highest value of all, or an exponential mean of each batch's."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dq_deploy.methods.ranges.scales import search_activation_table
from dq_deploy.methods.ranges.step_ranges import (
    SEARCHED_BITS,
    VALUES,
    VALUES_A_STEP,
    Draws,
    LayerRanges,
    StepRange,
    first_of_every_step,
    output_table,
)


def test_momentum_follows_each_step_from_its_first_batch() -> None:
    seen = StepRange.empty(3, momentum=0.9)
    seen.add(torch.tensor([[-1.0, 2.0], [-3.0, 1.0], [-5.0, 5.0]]), np.array([0, 0, 2]), None)
    assert seen.low[[0, 2]].tolist() == [-3.0, -5.0]
    assert seen.high[[0, 2]].tolist() == [2.0, 5.0]
    assert np.isinf(seen.low[1])
    seen.add(torch.tensor([[-13.0, 12.0]]), np.array([0]), None)
    assert seen.low[0] == pytest.approx(0.9 * -3 + 0.1 * -13)
    assert seen.high[0] == pytest.approx(0.9 * 2 + 0.1 * 12)
    assert (seen.low[2], seen.high[2]) == (-5.0, 5.0)


def test_without_momentum_ranges_only_grow() -> None:
    seen = StepRange.empty(1)
    for value in (2.0, -4.0, 1.0):
        seen.add(torch.tensor([[value, 0.0]]), np.array([0]), None)
    assert (seen.low[0], seen.high[0]) == (-4.0, 2.0)


def test_a_group_has_the_ends_of_its_steps() -> None:
    seen = StepRange.empty(4)
    seen.add(torch.tensor([[-1.0, 1.0], [-2.0, 2.0], [-3.0, 3.0], [-4.0, 4.0]]), np.arange(4), None)
    low, high = seen.ends(np.array([0, 0, 1, 1]))
    assert (low.tolist(), high.tolist()) == ([-2.0, -4.0], [2.0, 4.0])


def test_values_of_a_larger_group_come_from_all_its_steps() -> None:
    seen = StepRange.empty(5)
    for t in range(5):
        seen.draws[t] = [np.full(6, t, np.float32)]
    values = seen.values(np.array([0, 0, 0, 1, 1]))
    assert values.shape == (2, 12)
    assert [np.bincount(row.astype(int), minlength=5).tolist() for row in values] == [[4, 4, 4, 0, 0], [0, 0, 0, 6, 6]]


@pytest.mark.parametrize(("steps", "count", "most"), [(20, 64 * 20, 256), (100, 6400, 256), (50, 50, 20)])
def test_some_inputs_are_of_every_step(steps: int, count: int, most: int) -> None:
    step = np.tile(np.arange(steps), count // steps)
    chosen = first_of_every_step(step, steps, most)
    assert len(chosen) <= max(most, steps)
    assert set(np.bincount(step[chosen], minlength=steps)) == {max(1, most // steps)}


def test_inputs_are_taken_in_equal_shares_of_the_steps() -> None:
    step = np.array([0] * 500 + [1] * 500 + [2, 2])
    chosen = first_of_every_step(step, 3, 256)
    assert np.bincount(step[chosen]).tolist() == [85, 85, 2]
    assert (np.diff(chosen) > 0).all()


def test_a_step_that_was_not_seen_has_the_widest_output_range() -> None:
    seen = StepRange.empty(3)
    seen.add(torch.tensor([[0.0, 1.0], [0.0, 4.0]]), np.array([0, 2]), None)
    scale, _ = output_table(seen, np.arange(3))
    np.testing.assert_allclose(scale, np.array([1, 4, 4]) / 255, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 20, 1000])
@pytest.mark.parametrize("inputs", [1, 32])
def test_fewer_steps_give_the_range_search_more_values_each(steps: int, inputs: int) -> None:
    draws = Draws.of_steps(np.full(steps, inputs))
    wanted = max(VALUES_A_STEP, -(-VALUES // steps))
    of_large = draws.of_inputs(1 << 20) * inputs
    assert ((of_large >= wanted) & (of_large < wanted + inputs)).all()
    of_small = draws.of_inputs(10) * inputs
    assert (of_small >= VALUES_A_STEP).all()
    assert (of_small <= max(VALUES_A_STEP + inputs, 10 * inputs)).all()


def test_rare_large_values_are_not_cut_where_one_step_has_all_values() -> None:
    """One value in 4,000 at 160 times the spread: among 2,048 drawn ones there may be none."""
    draw = np.random.default_rng(0)
    values = draw.standard_normal(VALUES).astype(np.float32)
    values[draw.integers(0, VALUES, VALUES // 4000)] = 160.0
    ends = values[None].min(1), values[None].max(1)
    few, _ = search_activation_table(*ends, values[values < 160][None, :VALUES_A_STEP], bits=8)
    all_, _ = search_activation_table(*ends, values[None], bits=8)
    assert all_ > 0.9 * (ends[1] - ends[0]) / 255
    assert few < 0.7 * all_


@pytest.mark.parametrize("bits", [SEARCHED_BITS, SEARCHED_BITS + 1])
def test_a_range_of_eight_bits_is_not_shrunk(bits: int) -> None:
    values = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    values[0] = 400.0
    seen = StepRange(low=values[None].min(1), high=values[None].max(1), draws=[[values[1:]]])
    ranges, layer = LayerRanges(parts=(seen,), output=seen), SimpleNamespace(activation_bits=bits)
    groups = np.zeros(1, np.int64)
    searched, whole = (
        ranges.input_tables(layer, groups=groups, symmetric=False, search=search)  # type: ignore[arg-type]
        for search in (True, False)
    )
    assert (searched[0][0] < whole[0][0]) == (bits == SEARCHED_BITS)
