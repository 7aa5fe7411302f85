"""Concatenations and the arena: what is written into the joined tensor at once, and who may share bytes."""

from __future__ import annotations

from itertools import combinations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from dq_deploy.native.program.arena import ALIGNMENT, lifetimes, plan_arena
from dq_deploy.native.program.joins import without_join_copies
from dq_deploy.native.program.program import Buffer, Op, Program, View, at_batch, from_json
from tests.native.programs import Case, Function, layer_of

IMAGE = {"x": (("B", 6, 4, 4), "float32")}
TOKENS = {"x": (("B", 4, 6), "float32")}


def flat(buffer: int, size: int) -> View:
    return View(buffer=buffer, offset=0, sizes=(size,), strides=(1,))


def op_of(reads: list[View], write: View) -> Op:
    return Op(kind="host", reads={f"x{i}": view for i, view in enumerate(reads)}, writes={"y": write})


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Random programs: every op reads what was written before."""
    sizes = draw(st.lists(st.integers(1, 300), min_size=2, max_size=12))
    kinds = [draw(st.sampled_from(["float32", "uint8", "int64", "bfloat16"])) for _ in sizes]
    ops = []
    for index in range(1, len(sizes)):
        read = draw(st.lists(st.integers(0, index - 1), max_size=3))
        ops.append(op_of([flat(i, sizes[i]) for i in read], flat(index, sizes[index])))
    last = draw(st.integers(0, len(sizes) - 1))
    return Program(
        buffers=tuple(Buffer(elements=n, dtype=kind) for n, kind in zip(sizes, kinds, strict=True)),
        inputs={"x": flat(0, sizes[0])},
        outputs={"y": flat(last, sizes[last])},
        ops=tuple(ops),
    )


@given(programs())
@settings(max_examples=80, deadline=None)
def test_buffers_that_live_at_once_share_no_bytes(program):
    arena, spans = plan_arena(program), lifetimes(program)
    ends = [at + b.elements * b.itemsize for at, b in zip(arena.offsets, program.buffers, strict=True)]
    assert all(at % ALIGNMENT == 0 for at in arena.offsets)
    assert max(ends) <= arena.nbytes
    for i, j in combinations(range(len(ends)), 2):
        together = spans[i][0] <= spans[j][1] and spans[j][0] <= spans[i][1]
        apart = ends[i] <= arena.offsets[j] or ends[j] <= arena.offsets[i]
        assert apart or not together


def test_an_input_lives_from_the_start_and_an_output_to_the_end():
    a, b, c = flat(0, 4), flat(1, 4), flat(2, 4)
    program = Program(
        buffers=(Buffer(elements=4, dtype="float32"),) * 3,
        inputs={"a": a},
        outputs={"b": b},
        ops=(op_of([], b), op_of([a], c)),
    )
    assert lifetimes(program) == [(-1, 1), (0, 2), (1, 1)]


def copies_left(case: Case) -> int:
    program = without_join_copies(from_json(at_batch(case.joined, 2)))
    return sum("joined" in op.attributes for op in program.ops)


def test_pieces_of_channels_are_written_in_place():
    layers = [layer_of("a", [3, 6, 1, 1]), layer_of("b", [3, 3, 3, 3], padding=(1, 1, 1, 1))]
    kids = {"a": torch.nn.Conv2d(6, 3, 1), "b": torch.nn.Conv2d(3, 3, 3, padding=1)}

    def joined(m, x):
        h = m.a(x)
        return torch.cat([h, m.b(h), functional.silu(x)], 1) * 2

    case = Case(Function(joined, **kids), IMAGE, layers)
    assert copies_left(case) == 0
    assert case.difference() < 1e-5


def test_joins_of_joins_and_a_piece_joined_twice_are_right():
    def joined(m, x):
        h = functional.silu(x)
        return torch.cat([torch.cat([h, h], 1), torch.cat([h, x], 1), torch.cat([h * 2, h * 3], 1)], 1) * 2

    case = Case(Function(joined), IMAGE)
    assert case.difference() < 1e-5
    assert copies_left(case) < 8


def test_other_axes_are_joined_by_copies():
    for axis in (0, 1, -1):
        case = Case(Function(lambda m, x, axis=axis: torch.cat([torch.tanh(x), x * 2], axis) * 2), TOKENS)
        assert case.difference() < 1e-5


def test_a_piece_whose_rows_would_not_stay_even_for_a_kernel_is_copied():
    def joined(m, x):
        h = functional.layer_norm(x, (6,))
        return torch.cat([h.flatten(1), x.flatten(1) * 2], 1) * 2

    case = Case(Function(joined), TOKENS)
    assert case.difference() < 1e-5
    assert copies_left(case) == 1
