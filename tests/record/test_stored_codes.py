"""A part whose codes are made when they are asked for is the same part, and keeps none of them."""

from __future__ import annotations

import numpy as np
import pytest

from dq_deploy.errors import RecordError
from dq_deploy.record import Part
from dq_deploy.record.stored_codes import StoredCodes, StoredPart

FIELDS = {
    "pre": np.ones(3, np.float32),
    "scale": np.ones(1, np.float32),
    "zero_point": np.zeros(1, np.int32),
    "w_zero_point": np.full((1, 2), 3, np.int32),
    "weight_scale": np.ones((1, 2), np.float32),
    "group_of_step": np.zeros(1, np.int32),
}
CODE = np.arange(6, dtype=np.int8).reshape(1, 2, 3)


def stored(asked, shape=CODE.shape):
    def read():
        asked.append(1)
        return CODE.copy()

    return StoredPart(StoredCodes(shape=shape, code_span=(0, 5), q_weight_span=(-3, 2), read=read), **FIELDS)


def test_it_is_the_part_of_those_codes():
    part, held = Part(w_code=CODE, **FIELDS), stored([])
    np.testing.assert_array_equal(held.w_code, part.w_code)
    np.testing.assert_array_equal(held.q_weight(0), part.q_weight(0))
    assert (held.w_shape, held.code_span, held.q_weight_span) == (part.w_shape, part.code_span, part.q_weight_span)
    assert held.fits_int8


def test_its_shape_and_its_span_need_no_codes():
    asked: list[int] = []
    held = stored(asked)
    assert held.w_shape == (1, 2, 3)
    assert held.code_span == (0, 5)
    assert not asked
    assert held.w_code is not held.w_code
    assert len(asked) == 2


def test_its_invariants_are_those_of_every_part():
    with pytest.raises(RecordError, match="w_zero_point has shape"):
        stored([], shape=(1, 4, 3))
