"""AdaRound's variables: where they start, where they end, what the penalty is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dq_deploy.methods.training.weight_rounding import penalty_beta, rounding_of_rest, rounding_penalty, soft_rounding


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
def test_the_soft_value_starts_at_the_rest(rest: list[float]) -> None:
    values = torch.tensor(rest)
    torch.testing.assert_close(soft_rounding(rounding_of_rest(values)), values, rtol=0, atol=1e-5)


@given(st.floats(-30, 30, width=32))
def test_a_variable_of_at_least_zero_is_nearer_to_up(rounding: float) -> None:
    soft = float(soft_rounding(torch.tensor(rounding)))
    assert 0 <= soft <= 1
    assert (soft >= 0.5) == (rounding >= 0) or abs(soft - 0.5) < 1e-6


def test_the_penalty_is_zero_where_all_is_decided_and_most_halfway() -> None:
    decided = torch.tensor([-9.0, 9.0, 12.0])
    assert float(rounding_penalty(decided, 20.0)) == 0
    assert float(rounding_penalty(torch.zeros(5), 2.0)) == pytest.approx(5)


def test_the_exponent_falls_from_20_towards_2_behind_the_warm_up() -> None:
    betas = [penalty_beta(i, 100) for i in range(100)]
    assert betas[:20] == [None] * 20
    assert betas[20] == 20
    assert betas[99] == pytest.approx(2, abs=0.3)
    assert betas[20:] == sorted(betas[20:], reverse=True)  # type: ignore[type-var]
