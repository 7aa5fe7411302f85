"""The picture of errors: scale, colours, bits."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dq_deploy.verify.layers.mixed_bits import mixed_bits_of
from dq_deploy.verify.report.heat_map import _colour_bar, colour_of, scale_ends
from tests.tiny import random_record, tiny_denoiser


def brightness(colour: str) -> float:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@given(st.lists(st.floats(-250, 250), max_size=30))
def test_the_scale_is_finite_and_has_width(values):
    low, high = scale_ends(np.array([*values, np.nan]))
    assert -10 <= low <= high - 10 <= 80


def test_more_noise_is_darker_and_nothing_known_is_no_colour_of_the_scale():
    tones = [brightness(colour_of(value, 0, 40)) for value in range(-5, 50)]
    assert all(a <= b for a, b in pairwise(tones))
    assert colour_of(float("nan"), 0, 40) == "none"


@given(st.lists(st.floats(-250, 250), max_size=30))
def test_the_numbers_of_the_scale_stand_apart_and_inside_the_picture(values):
    bar = _colour_bar(*scale_ends(np.array(values)))
    widths = [6.5 * len(word.text) for word in bar.words]  # about a letter's
    starts = [w.x - (width / 2 if w.anchor == "middle" else 0) for w, width in zip(bar.words, widths, strict=True)]
    ends = [start + width for start, width in zip(starts, widths, strict=True)]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    assert ends[-1] <= bar.width


def test_bits_are_shown_where_somebody_chose_them():
    record = random_record(tiny_denoiser())
    assert mixed_bits_of(record) is None
    by_hand = dataclasses.replace(record, provenance={"options": {"layer_bits": {"conv_in": [8, 8]}}})
    assert mixed_bits_of(by_hand).layers["conv_in"] == (4, 8)  # as the record has it, not as was asked
    stage = {"stage": "bits", "budget": 5, "average_bits": 4.9, "layers": {}, "sensitivity": {}}
    found = mixed_bits_of(dataclasses.replace(record, provenance={"history": [{"stage": "ranges"}, stage]}))
    assert (found.budget, found.average_bits, found.activation_budget) == (5.0, 4.9, None)
    stage |= {"budget": None, "activation_budget": 5, "average_activation_bits": 4.99}
    found = mixed_bits_of(dataclasses.replace(record, provenance={"history": [stage]}))
    assert (found.budget, found.activation_budget, found.average_activation_bits) == (None, 5.0, 4.99)
    assert set(found.layers) == set(record.layers)
