"""Codes from second-order statistics: the least error over the rows that were seen, and never outside the grid."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_deploy.errors import NonFiniteError
from dq_deploy.methods.layer_bits import LayerBits
from dq_deploy.methods.prepare.assembly import build_layer
from dq_deploy.methods.prepare.preparation import PreparedLayer
from dq_deploy.methods.ranges.scales import quantized_weight
from dq_deploy.methods.second_order.rounding import SecondOrder, lower_factor, rounded_layer, solved
from dq_deploy.methods.second_order.statistics import LayerStatistics
from dq_deploy.models import LayerSite
from dq_deploy.record import Layer

PLAIN = SecondOrder(float_targets=False, bias=False, rescale=False, damping=1e-6)


def linear(
    outs: int, columns: int, *, bits: int = 4, seed: int = 0, widths: tuple[int, ...] = (), **more: Any
) -> tuple[PreparedLayer, Layer]:
    """A linear layer and its nearest codes."""
    rng = np.random.default_rng(seed)
    site = LayerSite(
        name="layer",
        kind="linear",
        in_channels=columns,
        out_channels=outs,
        kernel=(),
        stride=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
        groups=1,
        macs=0,
        input_shape=(1, columns),
        output_shape=(1, outs),
    )
    prepared = PreparedLayer(
        site=site,
        bits=LayerBits(name="layer", weight_bits=bits, activation_bits=8, reason=""),
        widths=widths or (columns,),
        pre=np.ones(columns, np.float32),
        weight=rng.standard_normal((outs, columns)).astype(np.float32),
        bias=rng.standard_normal(outs).astype(np.float32),
        fold="",
    )
    return prepared, started(prepared, **more)


def started(prepared: PreparedLayer, *, asymmetric: bool = False) -> Layer:
    table = (np.full(1, 0.02, np.float32), np.zeros(1, np.int32))
    return build_layer(
        prepared,
        tables=[table] * len(prepared.widths),
        weights=[quantized_weight(w, prepared.weight_bits, asymmetric=asymmetric) for w in prepared.weight_parts()],
        bias=prepared.bias,
        output=None,
        symmetric=False,
    )


def correlated(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed + 100)
    mixed = rng.standard_normal((rows, columns)) @ rng.standard_normal((columns, columns)) + rng.standard_normal(
        columns
    )
    return torch.from_numpy(mixed.astype(np.float32))


def statistics(prepared: PreparedLayer, x: torch.Tensor, y: torch.Tensor | None = None) -> LayerStatistics:
    seen = LayerStatistics(prepared, share=1, seed=0, outputs=y is not None)
    for rows in x.split(50):
        at = slice(seen_rows(seen), seen_rows(seen) + len(rows))
        seen.add(rows, None if y is None else y[at])
    return seen


def seen_rows(seen: LayerStatistics) -> int:
    return seen.rows + sum(len(rows) for rows, _ in seen._waiting)


def weights_of(layer: Layer) -> np.ndarray:
    pieces = [part.q_weight(0) * part.weight_scale[0].astype(np.float64)[:, None] for part in layer.parts]
    return np.concatenate(pieces, axis=1)


def error_of(layer: Layer, weight: np.ndarray, x: torch.Tensor) -> float:
    return float(np.square(x.numpy().astype(np.float64) @ (weights_of(layer) - weight).T).sum())


@given(outs=st.integers(1, 6), columns=st.integers(1, 12), seed=st.integers(0, 1000), bits=st.integers(2, 8))
@settings(max_examples=40, deadline=None)
def test_codes_stay_in_the_range_of_their_bits_and_scales_and_bias_as_they_were(
    outs: int, columns: int, seed: int, bits: int
) -> None:
    prepared, start = linear(outs, columns, bits=bits, seed=seed)
    found = rounded_layer(prepared, start, statistics(prepared, correlated(40, columns, seed)), PLAIN)
    assert found.parts[0].w_code.min() >= -(2 ** (bits - 1))
    assert found.parts[0].w_code.max() <= 2 ** (bits - 1) - 1
    np.testing.assert_array_equal(found.parts[0].weight_scale, start.parts[0].weight_scale)
    np.testing.assert_array_equal(found.bias, start.bias)


def test_the_error_falls_far_below_that_of_the_nearest_codes_where_inputs_correlate() -> None:
    prepared, start = linear(20, 300)
    x = correlated(900, 300)
    found = rounded_layer(prepared, start, statistics(prepared, x), PLAIN)
    assert error_of(found, prepared.weight, x) < 0.6 * error_of(start, prepared.weight, x)


def test_without_feedback_or_with_inputs_that_do_not_correlate_codes_are_the_nearest() -> None:
    prepared, start = linear(5, 6)
    x = correlated(40, 6)
    unconnected = torch.eye(6).repeat(7, 1)
    for rows, plan in ((x, replace(PLAIN, feedback=False)), (unconnected, PLAIN)):
        found = rounded_layer(prepared, start, statistics(prepared, rows), plan)
        np.testing.assert_array_equal(found.parts[0].w_code, start.parts[0].w_code)


def test_two_columns_are_rounded_as_the_equations_say() -> None:
    """Against a search of the second code for the code that the last column was rounded to."""
    prepared, start = linear(8, 2, seed=3)
    x = correlated(50, 2, seed=3)
    found = rounded_layer(prepared, start, statistics(prepared, x), PLAIN)
    scale = start.parts[0].weight_scale[0].astype(np.float64)
    q = found.parts[0].w_code[0]
    np.testing.assert_array_equal(q[:, 1], start.parts[0].w_code[0][:, 1])
    for n in range(8):
        errors = []
        for code in range(-8, 8):
            e = np.array([code, q[n, 1]]) * scale[n] - prepared.weight[n]
            errors.append(float(np.square(x.numpy() @ e).sum()))
        assert q[n, 0] == np.argmin(errors) - 8


def test_columns_in_pieces_are_rounded_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, start = linear(7, 40)
    x = correlated(200, 40)
    found = []
    for columns, tile in itertools.product((3, 128), (7, 1024)):
        monkeypatch.setattr("dq_deploy.methods.second_order.rounding.COLUMNS", columns)
        monkeypatch.setattr("dq_deploy.methods.second_order.statistics.TILE", tile)
        found.append(rounded_layer(prepared, start, statistics(prepared, x), PLAIN).parts[0].w_code)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("asymmetric", [False, True])
def test_parts_have_scales_and_zero_points_of_their_own(asymmetric: bool) -> None:
    prepared, _ = linear(6, 20, widths=(8, 12))
    prepared = replace(prepared, weight=prepared.weight * np.repeat([1, 5], [8, 12]).astype(np.float32))
    start = started(prepared, asymmetric=asymmetric)
    x = correlated(100, 20)
    found = rounded_layer(prepared, start, statistics(prepared, x), replace(PLAIN, rescale=True))
    assert [part.w_code.shape for part in found.parts] == [(1, 6, 8), (1, 6, 12)]
    assert error_of(found, prepared.weight, x) < error_of(start, prepared.weight, x)
    for mine, was in zip(found.parts, start.parts, strict=True):
        np.testing.assert_array_equal(mine.w_zero_point, was.w_zero_point)
        assert not np.array_equal(mine.weight_scale, was.weight_scale)
        assert np.abs(mine.weight_scale / was.weight_scale - 1).max() <= 0.5 + 1e-6


def test_fitted_scales_have_less_error() -> None:
    prepared, start = linear(20, 100, bits=3)
    x = correlated(400, 100)
    plain, fitted = (
        rounded_layer(prepared, start, statistics(prepared, x), replace(PLAIN, rescale=rescale))
        for rescale in (False, True)
    )
    assert error_of(fitted, prepared.weight, x) < error_of(plain, prepared.weight, x)


@pytest.mark.parametrize("float_targets", [False, True])
def test_the_bias_takes_the_mean_error(float_targets: bool) -> None:
    prepared, start = linear(5, 12)
    x = correlated(200, 12)
    assert prepared.bias is not None
    y = x @ torch.from_numpy(prepared.weight).T + torch.from_numpy(prepared.bias) + (3.0 if float_targets else 0.0)
    plan = SecondOrder(float_targets=float_targets)
    found = rounded_layer(prepared, start, statistics(prepared, x, y if float_targets else None), plan)
    given = x.numpy() @ weights_of(found).T + found.bias
    np.testing.assert_allclose(given.mean(0), y.numpy().mean(0), atol=1e-3)


def test_float_targets_move_the_weights_to_what_fits_the_float_outputs() -> None:
    """Inputs that a prefix shrank by a tenth: the weights make it good."""
    prepared, start = linear(10, 30, bits=8)
    x = correlated(500, 30)
    assert prepared.bias is not None
    y = x @ torch.from_numpy(prepared.weight).T + torch.from_numpy(prepared.bias)
    shrunk = 0.9 * x
    plan = SecondOrder(damping=1e-6, rescale=False)
    found = rounded_layer(prepared, start, statistics(prepared, shrunk, y), plan)
    plain = rounded_layer(prepared, start, statistics(prepared, shrunk), replace(plan, float_targets=False))
    errors = [
        float(np.square(shrunk.numpy() @ weights_of(layer).T + layer.bias - y.numpy()).mean())
        for layer in (found, plain)
    ]
    assert errors[0] < 0.2 * errors[1]


def test_inputs_that_are_all_zero_leave_the_nearest_codes() -> None:
    prepared, start = linear(4, 9)
    found = rounded_layer(prepared, start, statistics(prepared, torch.zeros(10, 9)), replace(PLAIN, damping=0.01))
    np.testing.assert_array_equal(found.parts[0].w_code, start.parts[0].w_code)


def test_inputs_that_are_not_finite_are_refused_by_the_layer_s_name() -> None:
    prepared, start = linear(4, 9)
    x = correlated(20, 9)
    x[3, 4] = torch.nan
    with pytest.raises(NonFiniteError, match="layer layer: the statistics of its input are not positive"):
        rounded_layer(prepared, start, statistics(prepared, x), PLAIN)


def test_factors_and_solutions_are_those_of_the_matrix() -> None:
    x = correlated(50, 11).double()
    square = x.T @ x
    factor = lower_factor(square.clone(), "layer")
    torch.testing.assert_close(factor @ factor.T, square)
    given = correlated(4, 11).double()
    torch.testing.assert_close(solved(factor, given) @ square, given)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_an_input_that_is_the_same_in_every_row_is_no_error_and_its_mean_goes_to_the_bias(rows: int) -> None:
    prepared, start = linear(20, 64)  # as the time's, where a model takes a single step
    x = correlated(1, 64).expand(rows, -1)
    y = torch.from_numpy(x.numpy() @ prepared.weight.T + prepared.bias)
    found = rounded_layer(prepared, start, statistics(prepared, x, y), SecondOrder())
    np.testing.assert_allclose(x[0].numpy() @ weights_of(found).T + found.bias, y[0].numpy(), rtol=1e-3, atol=1e-3)
    nearest = np.abs(weights_of(start) - prepared.weight).max()
    assert np.abs(weights_of(found) - prepared.weight).max() < 1.5 * nearest  # scales are fitted once more
