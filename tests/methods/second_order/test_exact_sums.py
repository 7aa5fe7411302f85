"""Statistics of many rows have the same bits in whatever order, and by however many processes, they are added."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from dq_deploy.methods.second_order.statistics import ExactSums

LARGEST = 8.0
values = st.lists(st.floats(-LARGEST, LARGEST, width=32), min_size=1, max_size=60)


@given(values, st.randoms(use_true_random=False))
def test_any_order_gives_the_same_bits(products, order):
    units = ExactSums.of(len(products), LARGEST, 1.0)
    held = units.on_grid(torch.tensor(products), units.x)
    mixed = list(held)
    order.shuffle(mixed)
    cut = order.randint(0, len(mixed))
    one, other = (sum(part, torch.zeros((), dtype=torch.float64)) for part in (mixed[:cut], mixed[cut:]))
    assert float(one + other) == float(held.flip(0).cumsum(0)[-1]) == math.fsum(held.tolist())


@given(values)
def test_what_the_unit_takes_is_far_below_what_float32_products_lose(products):
    units = ExactSums.of(len(products), LARGEST, 1.0)
    given_ = torch.tensor(products, dtype=torch.float64)
    assert float((units.on_grid(given_, units.x) - given_).abs().max()) <= 2.0**-48 * LARGEST * len(products)
