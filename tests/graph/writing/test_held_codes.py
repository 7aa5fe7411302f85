"""The form chosen for a part never lets a code or a pair of products overflow."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_deploy.graph.writing.held_codes import PAIR_LIMIT, held_codes, pair_safe
from tests.graph.passes.single_layer import random_layer


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), bits=st.integers(2, 8), symmetric=st.booleans())
def test_held_codes_fit_unsigned_bytes_and_include_the_code_of_zero(seed, bits, symmetric):
    layer = random_layer(np.random.default_rng(seed), activation_bits=bits, symmetric=symmetric)
    part = layer.parts[0]
    held = held_codes(layer, part)
    z = part.zero_point
    if held.offset is None:
        assert bits == 8
        return
    assert (layer.q_min - z + held.offset >= 0).all()
    assert (layer.q_max - z + held.offset <= held.highest).all()
    assert 0 <= held.offset <= held.highest <= 255


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.integers(-128, 127), min_size=1, max_size=9),
    highest=st.integers(1, 255),
)
def test_pair_safe_means_no_sum_of_two_neighbours_leaves_int16(weights, highest):
    w = np.array([weights], np.int16)
    sums = [abs(highest * a) + abs(highest * b) for a, b in zip(weights, [*weights[1:], 0], strict=True)]
    if pair_safe(w, highest):
        assert max(sums) <= PAIR_LIMIT
    else:
        assert max([abs(highest * v) for v in weights] + sums) > PAIR_LIMIT
