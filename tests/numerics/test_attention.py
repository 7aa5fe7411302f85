"""Attention on codes in numpy: near attention in float64, and strict about codes."""

from __future__ import annotations

import numpy as np
import pytest

from dq_deploy.numerics.attention import (
    OperandTable,
    accumulators,
    attention_output,
    score_factor,
    softmax_codes,
)

SOFTMAX = OperandTable(q_min=0, q_max=255, scale=np.float32(1 / 255), zero_point=0)


def table(x, q_max=127):
    return OperandTable(q_min=-q_max - 1, q_max=q_max, scale=np.float32(np.abs(x).max() / q_max), zero_point=0)


@pytest.fixture
def operands():
    rng = np.random.default_rng(0)
    return {role: rng.standard_normal((n, 16)).astype(np.float32) for role, n in (("q", 9), ("k", 40), ("v", 40))}


@pytest.mark.parametrize("normed", [False, True])
def test_it_is_near_attention_in_float64(operands, normed):
    q, k, v = operands["q"], operands["k"], operands["v"]
    tables = {role: table(x) for role, x in operands.items()}
    scores = accumulators(tables["q"].codes(q), tables["k"].codes(k).T)
    found = softmax_codes(scores, score_factor(tables["q"], tables["k"], 0.25), SOFTMAX, normed=normed)
    codes = np.rint(found.position).astype(np.int64)
    sums = accumulators(codes, tables["v"].codes(v))
    got = attention_output(sums, codes, tables["v"], SOFTMAX, normed=normed)
    e = np.exp(q.astype(np.float64) @ k.T * 0.25)
    want = e / e.sum(-1, keepdims=True) @ v
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()
    assert not found.wrong(codes).any()


def test_a_code_that_is_one_off_is_wrong_unless_it_stood_at_a_tie(operands):
    scores = np.array([[0, -100, -3]])
    found = softmax_codes(scores, np.float32(0.01), SOFTMAX, normed=False)
    codes = np.rint(found.position).astype(np.int64)
    assert not found.wrong(codes).any()
    assert found.wrong(codes + 1).all()
    assert found.wrong(codes - 1).all()
    tie = softmax_codes(np.array([[0, -1]]), np.float32(np.log(255 / 100.5)), SOFTMAX, normed=False)
    assert not tie.wrong(np.array([[255, 100]])).any()
    assert not tie.wrong(np.array([[255, 101]])).any()


def test_integers_beyond_what_float64_holds_stay_exact():
    left = np.full((1, 3), 2**30, np.int64)
    right = np.array([[2**30], [1], [-1]], np.int64)
    assert accumulators(left, right)[0, 0] == 2**60


def test_codes_are_clamped_around_a_zero_point():
    own = OperandTable(q_min=0, q_max=255, scale=np.float32(0.5), zero_point=10)
    x = np.array([-100.0, -4.75, 0.0, 0.25, 0.75, 500.0], np.float32)
    assert own.codes(x).tolist() == [-10, -10, 0, 0, 2, 245]


def test_codes_of_scores_that_are_no_number_are_wrong():
    found = softmax_codes(np.array([[0, 3, -2]]), np.float32(np.inf), SOFTMAX, normed=False)
    assert found.wrong(np.zeros((1, 3), np.uint8)).all()
