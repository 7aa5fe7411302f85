"""Attention in codes: every integer equals the reference, codes of the softmax are its right roundings."""

from __future__ import annotations

import numpy as np
import pytest
from dq_kernels.attention import codes_fit, run_codes
from dq_kernels.attention.cases import TEST_CASES, Case
from dq_kernels.attention.reference import (
    attention,
    centred_codes,
    score_accumulators,
    value_accumulators,
    weight_positions,
)
from dq_kernels.cpu.library import Context, KernelInputError, known_isas
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.attention.tables import tables_for

NEAR_TIE = 2e-4
"""How far from a tie a code may fall on the other side: 255 times what float32 loses in exp and its argument."""


def codes_at(x, table, step):
    row = step if len(table.scale) > 1 else np.zeros_like(step)
    zero = table.zero_point[row].reshape(-1, 1, 1, 1)
    return centred_codes(x, table.inverse[row].reshape(-1, 1, 1, 1), table.q_min - zero, table.q_max - zero)


def at(table, step):
    return table.scale[step if len(table.scale) > 1 else np.zeros_like(step)].reshape(-1, 1, 1, 1)


def assert_exact(context, inputs, tables, step, *, normed):
    got = run_codes(context, **inputs, tables=tables, step=step, normed=normed)
    codes = {role: codes_at(inputs[role], tables[role], step) for role in "qkv"}
    assert np.array_equal(got.scores, score_accumulators(codes["q"], codes["k"]))
    scale = np.float32(inputs["q"].shape[-1] ** -0.5)
    factor = (at(tables["q"], step) * at(tables["k"], step)).astype(np.float32) * scale
    position = weight_positions(got.scores, factor, tables["p"].inverse[0], normed=normed)
    # the argument of exp is off by its own last bits: a little code of a far score, next to nothing
    clipped = np.clip(position, 0, tables["p"].q_max)
    assert np.abs(got.weights - clipped).max() <= 0.5 + NEAR_TIE
    assert np.array_equal(got.sums, value_accumulators(got.weights, codes["v"]))
    total = got.weights.astype(np.int64).sum(-1, keepdims=True).astype(np.float32)
    by = at(tables["p"], step) * at(tables["v"], step) if normed else at(tables["v"], step) / total
    wanted = (got.sums.astype(np.float32) * by.astype(np.float32)).astype(np.float32)
    assert got.y.tobytes() == np.ascontiguousarray(wanted.transpose(0, 2, 1, 3)).tobytes()
    assert not got.nan_seen
    return got


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("case", TEST_CASES, ids=lambda c: c.name)
def test_every_integer_is_exact_on_every_instruction_set(each_context_of_products, case, symmetric, normed):
    inputs = case.inputs()
    tables = tables_for(inputs, steps=3, symmetric=symmetric)
    step = np.arange(case.batch, dtype=np.int32)[::-1].copy() % 3
    assert_exact(each_context_of_products, inputs, tables, step, normed=normed)


@given(
    st.builds(
        Case,
        name=st.just(""),
        batch=st.integers(1, 2),
        rows=st.integers(1, 40),
        kv_rows=st.integers(1, 300),
        heads=st.integers(1, 3),
        head_dim=st.integers(1, 90),
        spread=st.sampled_from([0.1, 1.0, 20.0]),
        seed=st.integers(0, 1000),
    ),
    st.booleans(),
    st.booleans(),
    st.sampled_from([127, 31, 7]),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_and_width_is_exact(case, symmetric, normed, q_max):
    inputs = case.inputs()
    tables = tables_for(inputs, symmetric=symmetric, q_max=q_max, seed=case.seed)
    with Context(1, known_isas()[-1]) as context:
        assert_exact(context, inputs, tables, np.zeros(case.batch, np.int32), normed=normed)


@pytest.mark.parametrize("isa", known_isas())
@pytest.mark.parametrize("case", [c for c in TEST_CASES if c.name in ("many-rows", "several-blocks")])
def test_the_number_of_threads_changes_no_bit(case, isa, context_of):
    inputs = case.inputs()
    tables, step = tables_for(inputs), np.zeros(case.batch, np.int32)
    runs = [run_codes(context_of(isa, n), **inputs, tables=tables, step=step, normed=False) for n in (1, 3, 7)]
    assert runs[0].y.tobytes() == runs[1].y.tobytes() == runs[2].y.tobytes()


def test_numerators_keep_even_attention_over_many_keys_and_probabilities_lose_it(best_context):
    inputs = Case(name="even", rows=12, kv_rows=2000, head_dim=16, spread=0.2).inputs()
    inputs["v"] += 1
    tables, step = tables_for(inputs), np.zeros(1, np.int32)
    want = attention(**inputs)
    near = assert_exact(best_context, inputs, tables, step, normed=False).y
    lost = assert_exact(best_context, inputs, tables, step, normed=True).y
    assert np.abs(near - want).max() < 0.03 * np.abs(want).max()
    assert np.abs(lost - want).max() > 0.9 * np.abs(want).max()


@pytest.mark.parametrize("role", ["q", "k", "v"])
@pytest.mark.parametrize("head_dim", [16, 21])
def test_a_nan_is_said(each_context_of_products, role, head_dim):
    inputs = Case(name="nan", rows=9, kv_rows=21, head_dim=head_dim).inputs()
    tables = tables_for(inputs)
    inputs[role][0, -1, 0, -1] = np.nan
    assert run_codes(
        each_context_of_products, **inputs, tables=tables, step=np.zeros(1, np.int32), normed=False
    ).nan_seen


def test_values_out_of_reach_are_clamped(each_context_of_products):
    inputs = Case(name="huge", rows=9, kv_rows=21, head_dim=16).inputs()
    tables = tables_for(inputs)
    for role in "qkv":
        inputs[role][0, 3] *= np.float32(1e30)
        inputs[role][0, 4] = np.inf
    assert_exact(each_context_of_products, inputs, tables, np.zeros(1, np.int32), normed=False)


def test_more_keys_than_fit_are_refused(best_context):
    assert codes_fit(4096, 128)
    assert not codes_fit(200_000, 64)
    x = np.zeros((1, 1, 1, 64), np.float32)
    k = np.broadcast_to(x, (1, 200_000, 1, 64))
    with pytest.raises(KernelInputError, match="200000 keys of 64 channels do not fit as codes"):
        run_codes(best_context, x, k, k, tables_for({r: x + 1 for r in "qkv"}), np.zeros(1, np.int32), normed=False)
