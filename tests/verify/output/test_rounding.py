"""The bound of rounding holds for float32 operations, is not idle, and is exact where nothing is rounded."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from dq_deploy.verify.inputs import ONE_STEP, batch_at, plan_batches, training_steps
from dq_deploy.verify.output.float_path import gap_between
from dq_deploy.verify.output.rounding import ErrorBounds
from dq_deploy.verify.path_inputs import other_timesteps, path_batches
from tests.tiny import random_record, tiny_denoiser

F = torch.nn.functional

OPERATIONS = {
    "silu": lambda x: F.silu(x),
    "gelu": lambda x: F.gelu(x),
    "softmax": lambda x: torch.softmax(x * 3, -1),
    "group norm": lambda x: F.group_norm(x, 4, torch.linspace(0.5, 2, 16, dtype=x.dtype), None, 1e-5),
    "layer norm": lambda x: F.layer_norm(x, (12,), torch.ones(12, dtype=x.dtype), torch.ones(12, dtype=x.dtype)),
    "sum": lambda x: x.sum(-1) / 3,
    "product": lambda x: x @ x.transpose(-1, -2),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "residual": lambda x: F.silu(x + 1) + x * 0.3 - x.exp() / 7,
    "angles": lambda x: torch.sin(x * 300) + torch.cos(x * 100),
    "convolution": lambda x: F.conv2d(x, torch.full((3, 16, 3, 3), 0.1, dtype=x.dtype), torch.ones(3, dtype=x.dtype)),
    "power of a number": lambda x: 300.0 ** (F.silu(x) / 4),
    "evenly spaced": lambda x: x * torch.linspace(0.1, 3, 12, dtype=x.dtype),
    "one less": lambda x: 1 - F.silu(x),
    "no rule": lambda x: torch.atan(F.silu(x)),
}


def bounded(function, x):
    mode = ErrorBounds()
    with torch.no_grad(), mode:
        wide = function(x.double())
        return wide, mode.bound_of(wide), mode


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [0.1, 4.0])
def test_float32_stays_within_the_bound_and_a_thousandth_does_not(name, size):
    x = torch.randn((2, 16, 6, 12), generator=torch.Generator().manual_seed(0)) * size
    wide, bound, _ = bounded(OPERATIONS[name], x)
    gap = (OPERATIONS[name](x).double() - wide).abs()
    assert (gap <= bound).all()
    assert float((wide.abs() * 1e-3 > bound).double().mean()) > 0.5


def test_attention_of_rounded_operands_has_a_bound_of_its_own():
    x = torch.randn((2, 4, 40, 12), generator=torch.Generator().manual_seed(0))
    narrow = x.bfloat16().float()
    mode = ErrorBounds(attention_unit=2.0**-9)
    with torch.no_grad(), mode:
        wide = F.scaled_dot_product_attention(x.double(), x.double(), x.double())
        bound = mode.bound_of(wide)
    gap = (F.scaled_dot_product_attention(narrow, narrow, narrow).double() - wide).abs()
    plain = bounded(OPERATIONS["attention"], x)[1]
    assert (gap <= bound).all()
    assert (gap > plain).any()
    assert float((bound > wide.abs().max() * 0.2).double().mean()) < 0.05


def test_what_only_moves_is_exact():
    x = torch.randn(2, 4, 6, 6)
    wide, bound, mode = bounded(lambda v: F.pad(F.interpolate(v, scale_factor=2.0), (0, 1, 0, 1)).flatten(2)[:, :2], x)
    assert bound is None
    assert wide.shape == (2, 2, 169)
    assert not mode.guessed


def test_an_operation_without_a_rule_is_named():
    assert any("atan" in name for name in bounded(OPERATIONS["no rule"], torch.randn(2, 16, 6, 12))[2].guessed)


def test_inputs_are_varied_one_by_one_between_and_outside_the_steps():
    record = random_record(tiny_denoiser(classes=5), steps=4)
    feeds = [b.feeds for b in path_batches(record, mixed=True, seed=0)]
    labels, times = (np.concatenate([f[name] for f in feeds]) for name in ("class_labels", "timestep"))
    assert set(labels.tolist()) == set(range(5))
    assert times.min() < record.timesteps[0]
    assert times.max() > record.timesteps[-1]
    inside = [t for t in other_timesteps(record) if record.timesteps[0] < t < record.timesteps[-1]]
    assert len(inside) == 3
    assert not set(inside) & {*record.timesteps.tolist(), *record.step_edges.tolist()}
    samples = np.concatenate([f["sample"] for f in feeds])
    base = (samples[0], times[0], labels[0])
    for sample, time, label in zip(samples, times, labels, strict=True):
        same = (np.array_equal(sample, base[0]), time == base[1], label == base[2])
        assert sum(not equal for equal in same) <= 1


def test_a_record_without_timesteps_is_looked_at_over_all_training_steps():
    record = random_record(tiny_denoiser(), steps=1)
    record = dataclasses.replace(record, timesteps=np.zeros(1, np.float32))
    last = training_steps(record) - 1
    batches = plan_batches(record, steps=5, inputs=2, mixed=True, seed=0)
    assert {0.0, float(last)} <= {float(t) for batch in batches for t in batch.feeds["timestep"]}
    times = {float(t) for batch in path_batches(record, mixed=True, seed=0) for t in batch.feeds["timestep"]}
    assert {0.0, float(last), float(last + 1)} <= times
    assert len(times) >= 8
    alone = batch_at(record, [0, 0], seed=0, kind=ONE_STEP)
    assert alone.feeds["timestep"].tolist() == [0.0, 0.0]
    assert all(len(b.buckets) == 1 for b in path_batches(record, mixed=False, seed=0))


@pytest.mark.parametrize("allowed", [np.inf, np.nan, 1e9])
def test_a_bound_that_says_nothing_is_no_excuse(allowed):
    want = np.ones((2, 3))
    got = want.copy()
    got[1, 2] = 1.01
    gap = gap_between(got, want, np.full(want.shape, allowed), floor=0.0)
    assert gap.share == pytest.approx(10)
    assert "at (1, 2) it is 1.01" in gap.text
    own = gap_between(got, want, np.full(want.shape, allowed), floor=0.0, own_error=5e-3)
    assert own.share == pytest.approx(0.5)
    assert gap_between(got * np.nan, want, want, floor=0.0).share == np.inf
    assert gap_between(got, want * np.nan, want, floor=0.0).share == np.inf
