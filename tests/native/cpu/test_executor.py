"""The CPU executor: threads, batches, closing, what it refuses, and products that no kernel takes."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as f

from dq_deploy.errors import DqError, InputError, NonFiniteError
from dq_deploy.native.cpu.executor import KEPT_PLANS, MOST_PLANS
from dq_deploy.record import Layer
from tests.native.programs import Case, Function, layer_of

IMAGE = {"x": (("B", 6, 4, 4), "float32")}
TOKENS = {"x": (("B", 5, 6), "float32")}
PADDED = (1, 1, 1, 1)


def one_conv(**changes: object) -> Case:
    layer = layer_of("a", [6, 6, 3, 3], padding=PADDED, **changes)
    return Case(Function(lambda m, x: m.a(f.group_norm(x, 2)) + x, a=nn.Conv2d(6, 6, 3, padding=1)), IMAGE, [layer])


def with_weight_sets(layer: Layer) -> Layer:
    rng = np.random.default_rng(9)
    n = layer.out_channels
    parts = [
        replace(
            part,
            w_code=rng.integers(-8, 8, (3, *part.w_code.shape[1:])).astype(np.int8),
            w_zero_point=rng.integers(-2, 3, (3, n)).astype(np.int32),
            weight_scale=rng.uniform(0.02, 0.1, (3, n)).astype(np.float32),
            group_of_step=np.array([2, 0, 1], np.int32),
        )
        for part in layer.parts
    ]
    return replace(layer, parts=tuple(parts))


def with_zero_points(layer: Layer, low: int, high: int) -> Layer:
    points = np.array([low, 100, high], np.int32)
    return replace(layer, parts=tuple(replace(part, zero_point=points) for part in layer.parts))


@pytest.mark.parametrize("split", [0, 2])
def test_weight_sets_that_differ_by_step_are_the_numerics(split):
    conv, line = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 6)
    image = with_weight_sets(layer_of("a", [6, 6, 3, 3], padding=PADDED, split=split))
    rows = with_weight_sets(layer_of("a", [6, 6], split=split))
    assert Case(Function(lambda m, x: m.a(x) + x, a=conv), IMAGE, [image]).difference() == 0
    assert Case(Function(lambda m, x: m.a(x) + x, a=line), TOKENS, [rows]).difference() == 0


def test_channel_groups_are_the_numerics():
    layer = layer_of("a", [4, 3, 3, 3], groups=2, padding=PADDED)
    module = Function(lambda m, x: m.a(x), a=nn.Conv2d(6, 4, 3, groups=2, padding=1))
    assert Case(module, IMAGE, [layer]).difference() == 0


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-40, 300), (1000, -1000)])
def test_zero_points_outside_the_codes_are_the_numerics_or_refused(low, high):
    bare, padded = layer_of("a", [6, 6, 3, 3]), layer_of("a", [6, 6, 3, 3], padding=PADDED)
    inside = Function(lambda m, x: m.a(x * 20), a=nn.Conv2d(6, 6, 3))
    assert Case(inside, IMAGE, [with_zero_points(bare, low, high)]).difference() == 0
    around = Function(lambda m, x: m.a(x * 20), a=nn.Conv2d(6, 6, 3, padding=1))
    assert Case(around, IMAGE, [with_zero_points(padded, low, high)]).difference() == 0
    zeros = Function(lambda m, x: m.a(f.pad(x * 20, PADDED)), a=nn.Conv2d(6, 6, 3))
    case = Case(zeros, IMAGE, [with_zero_points(bare, low, high)])
    if low == 0:
        assert case.difference() == 0
    else:
        with pytest.raises(InputError, match="layer a pads by codes outside"):
            case.difference()


def test_float16_parameters_are_read_as_numbers():
    case = Case(Function(lambda m, x: x + m.w, w=nn.Parameter(torch.arange(6.0))), TOKENS)
    executor = case.executor()
    executor.record.float_parameters["w"] = np.arange(6, dtype=np.float16)
    feeds = case.feeds(2)
    assert np.array_equal(executor.run(feeds)["output"], case.wanted(feeds))
    executor.close()


def test_a_layer_that_nothing_calls_changes_nothing():
    module = Function(lambda m, x: m.a(x), a=nn.Linear(6, 6), b=nn.Linear(3, 3))
    case = Case(module, TOKENS, [layer_of("b", [3, 3])])
    assert case.difference() < 1e-5
    assert case.executor().constants == {}


def test_timesteps_beyond_the_calibrated_take_the_outer_buckets():
    case = one_conv()
    feeds = case.feeds(3) | {"timestep": np.array([-5, 1e9, 3.4e38], np.float32)}
    executor = case.executor()
    np.testing.assert_allclose(executor.run(feeds)["output"], case.wanted(feeds), rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="timestep holds NaN"):
        executor.run(feeds | {"timestep": np.full(3, np.nan, np.float32)})
    executor.close()


@pytest.mark.parametrize("groups", [1, 2])
def test_a_nan_is_refused_with_the_layer_it_reached(groups):
    layer = layer_of("a", [6, 6 // groups, 1, 1], groups=groups)
    case = Case(Function(lambda m, x: m.a((x - x) / (x - x)), a=nn.Conv2d(6, 6, 1, groups=groups)), IMAGE, [layer])
    with pytest.raises(NonFiniteError, match="a NaN reached the input of a,"):
        case.executor().run(case.feeds(2))


def test_a_nan_in_a_norm_is_refused_with_its_name():
    case = Case(Function(lambda m, x: m.norm((x - x) / (x - x)) * 2, norm=nn.GroupNorm(2, 6)), IMAGE)
    with pytest.raises(NonFiniteError, match="a NaN reached the input of norm,"):
        case.executor().run(case.feeds(2))


def test_runs_of_several_threads_do_not_mix():
    case = one_conv()
    executor = case.executor()
    feeds = [case.feeds(3, seed) for seed in range(4)]
    wanted = [executor.run(feed)["output"] for feed in feeds]
    wrong = []

    def work(index: int) -> None:
        outputs = [executor.run(feeds[index])["output"] for _ in range(40)]
        wrong.extend(output for output in outputs if not np.array_equal(output, wanted[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(feeds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    executor.close()


def test_a_closed_executor_says_so():
    case = one_conv()
    executor = case.executor()
    executor.run(case.feeds(2))
    executor.close()
    executor.close()
    with pytest.raises(InputError, match="the engine is closed"):
        executor.run(case.feeds(2))


def test_a_batch_beyond_memory_is_refused():
    executor = one_conv().executor()
    with pytest.raises(InputError, match="a batch of 1000000000000 takes"):
        executor.plan(10**12)
    executor.close()


def test_a_model_that_cuts_the_batch_is_refused_where_it_would_read_past_a_buffer():
    case = Case(Function(lambda m, x: x[:2] * 2), TOKENS)
    assert case.difference((2, 5)) == 0
    with pytest.raises(DqError, match="at a batch of 1"):
        case.difference((1,))


def test_the_batches_used_last_are_kept():
    case = one_conv()
    executor = case.executor()
    kept = executor.plan(1)
    for batch in range(2, 2 + KEPT_PLANS):
        executor.plan(batch)
        assert executor.plan(1) is kept
    executor.close()


@pytest.mark.parametrize(("little", "most"), [(2**28, MOST_PLANS), (1, KEPT_PLANS)])
def test_more_are_kept_where_they_take_little(monkeypatch, little, most):
    monkeypatch.setattr("dq_deploy.native.cpu.executor.LITTLE_BYTES", little)
    executor = one_conv().executor()
    for batch in range(1, 30):
        executor.plan(batch)
        assert len(executor.kept_plans()) == min(batch, most)
    executor.close()
