from __future__ import annotations

import numpy as np
import pytest
from dq_kernels.group_norm_silu_quantize.cases import values
from dq_kernels.group_norm_silu_quantize.reference import exp32, group_norm_silu_quantize, silu32, statistics


def float64_norm(x: np.ndarray, groups: int, eps: float) -> np.ndarray:
    batch, rows, channels = x.shape
    parts = x.astype(np.float64).reshape(batch, rows, groups, channels // groups)
    mean = parts.mean((1, 3), keepdims=True)
    variance = ((parts - mean) ** 2).mean((1, 3), keepdims=True)
    return ((parts - mean) / np.sqrt(variance + eps)).reshape(x.shape)


@pytest.mark.parametrize("power", [-50, 0, 50])
@pytest.mark.parametrize("kind", ["normal", "mixed", "constant", "zero"])
def test_the_norm_is_that_of_float64_to_1e_6_of_its_spread(kind, power):
    x = values(np.random.default_rng(1), (1, 300, 48), kind) * np.float32(2.0**power)
    eps = 1e-5 * 4.0**power
    y, _, _ = group_norm_silu_quantize(x, np.zeros(1, np.int32), 6, eps, silu=False)
    expected = float64_norm(x, 6, eps)
    assert np.abs(y - expected).max() <= 1e-6 * max(float(np.abs(expected).max()), 1e-6)


def test_a_mean_far_beyond_the_deviation_costs_no_more_than_its_own_rounding():
    x = values(np.random.default_rng(2), (1, 4096, 8), "far")
    mean, rstd, fit = statistics(x, 1e-5)
    exact = x.astype(np.float64)
    assert fit
    assert abs(mean - exact.mean()) <= np.spacing(mean)
    assert rstd == pytest.approx(1 / np.sqrt(exact.var() + 1e-5), rel=1e-5)


def test_exp_is_within_two_ulp_of_float64():
    v = np.linspace(-87, 88, 400_001).astype(np.float32)
    exact = np.exp(v.astype(np.float64))
    assert (np.abs(exp32(v) - exact) / np.spacing(exact.astype(np.float32))).max() <= 2.0


def test_exp_stays_at_its_ends_beyond_them():
    far = np.array([-1e30, -88, -87, 88, 89, 1e30], np.float32)
    found = exp32(far)
    assert (found[:3] == found[2]).all()
    assert (found[3:] == found[3]).all()
    assert np.isfinite(found).all()
    assert (found > 0).all()


def test_silu_is_within_a_few_ulp_of_float64():
    y = np.linspace(-80, 80, 400_001).astype(np.float32)
    wide = y.astype(np.float64)
    exact = wide / (1 + np.exp(-wide))
    assert (np.abs(silu32(y) - exact) / np.spacing(np.abs(exact).astype(np.float32))).max() <= 4.0


def test_silu_is_torchs_to_5e_7_of_the_largest_value():
    torch = pytest.importorskip("torch")
    y = (np.random.default_rng(3).standard_normal(200_000) * 4).astype(np.float32)
    expected = torch.nn.functional.silu(torch.from_numpy(y)).numpy()
    assert np.abs(silu32(y) - expected).max() <= 5e-7 * np.abs(expected).max()


@pytest.mark.parametrize(("rows", "channels", "groups"), [(1024, 128, 32), (64, 320, 32), (16, 512, 32)])
def test_group_norm_is_torchs_to_a_millionth_of_the_largest_value(rows, channels, groups):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((1, rows, channels)) * 3 + 0.7).astype(np.float32)
    gamma, beta = rng.standard_normal((2, channels)).astype(np.float32)
    y, _, _ = group_norm_silu_quantize(x, np.zeros(1, np.int32), groups, 1e-6, True, gamma, beta)
    first = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 2, 1)))
    normed = torch.nn.functional.group_norm(first, groups, torch.from_numpy(gamma), torch.from_numpy(beta), 1e-6)
    expected = torch.nn.functional.silu(normed).numpy().transpose(0, 2, 1)
    assert np.abs(y - expected).max() <= 1e-6 * np.abs(expected).max()
