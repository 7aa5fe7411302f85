"""Power-of-two scaled skips: the record computes what the definition says, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_deploy import numerics
from dq_deploy.methods.scaling.power_of_two import (
    elected_exponents,
    is_skip_convolution,
    most_shift,
    shifted_layer,
    votes_of,
    votes_within,
)
from dq_deploy.numerics.arrays import F32
from dq_deploy.record import Layer, Part

STEPS = 3


def part_of(rng: np.random.Generator, channels: int, bits: int, levels: int) -> Part:
    half = 2 ** (bits - 1)
    zero = rng.integers(-half, half, 5) if bits < 8 else np.zeros(5)
    return Part(
        pre=rng.uniform(0.5, 2, channels).astype(np.float32),
        scale=rng.uniform(0.01, 0.1, STEPS).astype(np.float32),
        zero_point=rng.integers(0, levels + 1, STEPS).astype(np.int32),
        w_code=rng.integers(-half, half, (1, 5, channels, 1, 1)).astype(np.int8),
        w_zero_point=zero[None].astype(np.int32),
        weight_scale=rng.uniform(0.01, 0.1, (1, 5)).astype(np.float32),
    )


def skip(seed: int = 0, weight_bits: int = 4, activation_bits: int = 6, widths: tuple[int, ...] = (6, 4)) -> Layer:
    rng = np.random.default_rng(seed)
    levels = 2**activation_bits - 1
    return Layer(
        name="up_blocks.0.resnets.0.conv_shortcut",
        kind="conv2d",
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        q_min=0,
        q_max=levels,
        parts=tuple(part_of(rng, width, weight_bits, levels) for width in widths),
        bias=rng.standard_normal(5).astype(np.float32),
    )


def by_definition(layer: Layer, exponents: list[np.ndarray], x: F32, step: np.ndarray) -> F32:
    """y = sum over parts of s s_w sum_k m_k c[k] w_q[k], c = rne(x / (s m)), in float32 as the integer layer has it."""
    y = None
    for part, e, piece in zip(layer.parts, exponents, np.split(x, [len(layer.parts[0].pre)], axis=1), strict=False):
        inverse = numerics.reciprocal(part.scale)[step]
        m = (inverse[:, None] * part.pre[None, :]).astype(np.float32) * (2.0**e).astype(np.float32)
        zero = part.zero_point[step].reshape(-1, 1, 1, 1)
        c = np.clip(np.rint(piece * m[:, :, None, None]), layer.q_min - zero, layer.q_max - zero)
        w = part.q_weight(0)[:, :, 0, 0].astype(np.float64)
        total = np.einsum("bkhw,k,nk->bnhw", c.astype(np.float64), 2.0**-e, w)
        factor = (part.scale[step][:, None] * part.weight_scale[0][None, :]).astype(np.float32)
        term = total.astype(np.float32) * factor[:, :, None, None]
        y = term if y is None else y + term
    assert y is not None
    assert layer.bias is not None
    return (y + layer.bias[None, :, None, None]).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 4))
def test_the_shifted_layer_equals_the_definition_bit_for_bit(seed: int, bits: int) -> None:
    layer = skip(seed, weight_bits=bits)
    rng = np.random.default_rng(seed)
    exponents = [rng.integers(0, 4, len(part.pre)) for part in layer.parts]
    exponents[0][0] = 3
    shifted = shifted_layer(layer, exponents)
    x = rng.standard_normal((4, 10, 2, 2)).astype(np.float32)
    step = rng.integers(0, STEPS, 4)
    got = numerics.integer_layer(shifted, x, step).output
    np.testing.assert_array_equal(got, by_definition(layer, exponents, x, step))
    assert shifted.weight_bits == 8


def test_no_factor_leaves_the_layer_as_it_was() -> None:
    layer = skip()
    assert shifted_layer(layer, [np.zeros(6, np.int64), np.zeros(4, np.int64)]) is layer


def test_a_part_without_factors_keeps_its_codes_and_zero_points() -> None:
    layer = skip()
    shifted = shifted_layer(layer, [np.zeros(6, np.int64), np.array([1, 0, 2, 0])])
    assert shifted.parts[0] is layer.parts[0]
    assert not shifted.parts[1].w_zero_point.any()
    np.testing.assert_array_equal(shifted.parts[1].pre, layer.parts[1].pre * np.array([2, 1, 4, 1], np.float32))


@pytest.mark.parametrize(("bits", "most"), [(4, 3), (5, 2), (6, 1), (8, 0)])
def test_factors_stop_where_shifted_weights_leave_int8(bits: int, most: int) -> None:
    part = part_of(np.random.default_rng(0), 400, bits, 63)
    assert most_shift(part) >= most
    symmetric = replace(part, w_zero_point=np.full((1, 5), 2 ** (bits - 1) - 1 if bits < 8 else 0, np.int32))
    assert most_shift(symmetric) == most


def test_an_input_votes_for_the_factor_of_least_error() -> None:
    part = Part(
        pre=np.array([1, 2, 1], np.float32),
        scale=np.array([1.0], np.float32),
        zero_point=np.array([8], np.int32),
        w_code=np.ones((1, 2, 3, 1, 1), np.int8),
        w_zero_point=np.zeros((1, 2), np.int32),
        weight_scale=np.ones((1, 2), np.float32),
    )
    # whole codes; codes of 0.5, -1.25 and 1.75; nothing at all
    x = torch.tensor([[-7.0, 5.0, 3.0], [0.25, -0.625, 0.875], [0.0, 0.0, 0.0]]).reshape(1, 3, 3, 1)
    votes, whole = votes_of(x, part, (0, 15), np.array([0]), 3)
    assert votes.tolist() == [[[0, 0, 0, 0], [0, 1, 2, 2], [0, 0, 0, 0]]]
    assert whole.tolist() == [[0, 2, 3]]
    assert votes_of(x, part, (0, 15), np.array([0]), 1)[0].tolist() == [[[0, 0], [0, 1], [0, 0]]]


def test_a_factor_that_clips_one_input_is_elected_by_none() -> None:
    part = replace(part_of(np.random.default_rng(0), 1, 4, 15), pre=np.ones(1, np.float32))
    part = replace(part, scale=np.ones(STEPS, np.float32), zero_point=np.full(STEPS, 8, np.int32))
    small = torch.full((9, 1, 4, 4), 0.25)
    large = small.clone()[:1]
    large[0, 0, 0, 0] = 5.0  # 10 halves, where codes end at 7
    votes, whole = votes_of(torch.cat([small, large]), part, (0, 15), np.zeros(10, np.int64), 3)
    assert elected_exponents(votes[..., 3], np.zeros(10, np.int64), 0.85)[0].tolist() == [2]  # nine of ten gain
    within, ceiling = votes_within(votes, whole)
    assert ceiling.tolist() == [0]
    assert not elected_exponents(within, np.zeros(10, np.int64), 0.85)[0].any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_an_elected_factor_clips_no_value_of_any_input_that_was_not_clipped(seed: int) -> None:
    rng = np.random.default_rng(seed)
    part = part_of(rng, 6, 4, 63)
    x = torch.from_numpy(rng.standard_normal((5, 6, 3, 3)).astype(np.float32) * rng.uniform(0.02, 2, (6, 1, 1)))
    x = x.float()
    step = rng.integers(0, STEPS, 5)
    within, _ = votes_within(*votes_of(x, part, (0, 63), step, 3))
    exponents = elected_exponents(within, np.zeros(5, np.int64), 0.5)[0]
    m = numerics.reciprocal(part.scale)[step][:, None] * part.pre
    zero = part.zero_point[step].reshape(-1, 1, 1, 1)

    def clipped(j: np.ndarray) -> np.ndarray:
        codes = np.rint(x.numpy() * (m * 2.0**j).astype(np.float32)[:, :, None, None])
        return ((codes < -zero) | (codes > 63 - zero)).sum((2, 3))

    np.testing.assert_array_equal(clipped(exponents), clipped(np.zeros(6)))


def test_agreement_below_the_threshold_leaves_a_channel_unscaled() -> None:
    votes = np.array([[2, 2]] * 8 + [[2, 1]] + [[1, 1]])
    elected, disagreeing = elected_exponents(votes, np.zeros(10, np.int64), 0.85)
    assert elected.tolist() == [2, 0]
    assert disagreeing == 0


def test_groups_must_elect_the_same_factor() -> None:
    votes = np.array([[1, 1, 3]] * 4 + [[1, 2, 0]] * 4)
    elected, disagreeing = elected_exponents(votes, np.repeat([0, 1], 4), 0.85)
    assert elected.tolist() == [1, 0, 0]
    assert disagreeing == 2


def test_only_the_pointwise_convolution_beside_a_residual_block_is_scaled() -> None:
    layer = skip()
    assert is_skip_convolution(layer)
    assert not is_skip_convolution(replace(layer, name="conv_in"))
