"""Programs: one text for every batch, and what two batches cannot tell."""

from __future__ import annotations

import pytest

from dq_deploy.errors import DqError
from dq_deploy.native.program.program import (
    Buffer,
    Op,
    Program,
    View,
    at_batch,
    check_bounds,
    check_joined,
    dumps,
    from_json,
    has_offsets,
    join_batches,
    loads,
    to_json,
    without_unused_buffers,
)


def program(batch: int, offset: int = 0) -> Program:
    view = View(buffer=1, offset=offset, sizes=(batch, 3), strides=(3, 1))
    weights = View(buffer="w", offset=0, sizes=(3,), strides=(1,))
    return Program(
        buffers=(Buffer(elements=7, dtype="uint8"), Buffer(elements=3 * batch, dtype="float32")),
        inputs={"x": view},
        outputs={"y": view},
        ops=(Op(kind="host", reads={"x0": weights}, writes={"y": view}, attributes={"function": "clone"}),),
    )


def test_text_gives_the_program_of_every_batch():
    joined = loads(dumps(join_batches(to_json(program(2)), to_json(program(3)))))
    for batch in (1, 2, 3, 7):
        assert from_json(at_batch(joined, batch)) == program(batch)


@pytest.mark.parametrize(("first", "second"), [("a", "b"), (1.0, 1.5), ([1], [1, 2]), (1, 1.0)])
def test_what_differs_in_more_than_sizes_is_refused(first, second):
    with pytest.raises(DqError, match="expected sizes alone to differ"):
        join_batches({"size": first}, {"size": second})


def test_sizes_that_are_not_in_proportion_to_the_batch_are_checked_by_a_third():
    joined = join_batches({"size": 4, "other": 2}, {"size": 9, "other": 3})
    assert has_offsets(joined)
    assert not has_offsets(join_batches({"size": 4}, {"size": 6}))
    check_joined(joined, {"size": 19, "other": 5})
    with pytest.raises(DqError, match="a batch of 5 is not on the line through those of 2 and 3"):
        check_joined(joined, {"size": 25, "other": 5})


def test_another_version_is_refused():
    with pytest.raises(DqError, match="version 0, expected"):
        loads('{"version": 0}')


def test_a_view_past_its_buffer_is_refused():
    check_bounds(program(2), 2, {"w": 3})
    with pytest.raises(DqError, match="y of host ends at element 6 of 1, which has 6"):
        check_bounds(program(2, offset=1), 2, {"w": 3})
    with pytest.raises(DqError, match="x0 of host ends at element 2 of w, which has 2"):
        check_bounds(program(2), 2, {"w": 2})


def test_buffers_nobody_touches_are_dropped():
    assert [b.dtype for b in without_unused_buffers(program(2)).buffers] == ["float32"]


def test_a_buffer_knows_the_bytes_of_an_element():
    assert [Buffer(elements=1, dtype=d).itemsize for d in ("bfloat16", "float16", "int64", "bool")] == [2, 2, 8, 1]
