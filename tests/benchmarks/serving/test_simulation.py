"""The simulation of servers: its parts against sums that are known, and its results against the measured server."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import simpy

from benchmarks.serving.simulation.fleet import Fleet, Scaler
from benchmarks.serving.simulation.measure import RESULTS
from benchmarks.serving.simulation.queueing import at_once, percentiles
from benchmarks.serving.simulation.times import Times
from dq_deploy.serve import Limits

SHAPE = "(1, 8, 8)"


def times_of(call=lambda rows: 1.0, *, check=0.0, first=0.0, between=0.0, last=0.0, outside=0.0):
    """Times that are always the same."""
    return Times(
        calls={SHAPE: {rows: [(0.0, call(rows))] for rows in range(1, 9)}},
        after=[(0.0, 0.0)],
        holds={"check": [(0.0, check)], "first": [(0.0, first)], "between": [(0.0, between)], "last": [(0.0, last)]},
        files=[(0.0, 0.0)],
        outside=outside,
    )


def fleet_of(times, *, steps=5, replicas=1, **limits):
    fleet = Fleet(env=simpy.Environment(), times=times, limits=Limits(**limits), kinds=[(SHAPE, steps, 1, 1)])
    fleet.add(replicas)
    return fleet


def latencies(fleet, starts, until=10_000):
    fleet.env.process(fleet.replayed((at, 0) for at in starts))
    fleet.env.run(until=until)
    return sorted(latency for _, latency in fleet.latencies)


def test_a_request_alone_takes_the_sum_of_its_parts():
    times = times_of(check=0.1, first=0.2, between=0.01, last=0.4, outside=0.05)
    assert latencies(fleet_of(times), [1.0]) == [pytest.approx(0.05 + 0.1 + 0.2 + 5 * 1.0 + 4 * 0.01 + 0.4)]


def test_requests_that_come_together_share_the_engine_s_calls():
    found = latencies(fleet_of(times_of(), max_batch=4), [0.0] * 4)
    assert len(found) == 4
    assert max(found) < 10.0  # one after another they take 20


def test_where_each_row_takes_its_time_nothing_is_won_by_sharing():
    found = latencies(fleet_of(times_of(lambda rows: float(rows)), max_batch=4), [0.0] * 4)
    assert max(found) == pytest.approx(20.0)
    assert min(found) > 15.0


def test_what_is_beyond_the_places_waits_and_what_is_beyond_the_queue_is_asked_again():
    fleet = fleet_of(times_of(), max_batch=1, queue=1)
    found = latencies(fleet, [0.0] * 4)
    assert len(found) == 4
    assert fleet.statuses.count(429) > 0
    assert fleet.statuses.count(200) == 4


def test_a_request_ends_with_its_time():
    fleet = fleet_of(times_of(), max_batch=1, time_limit_s=7.0)
    assert latencies(fleet, [0.0, 0.0]) == []
    assert fleet.statuses == [504, 504]


def test_what_a_lost_replica_held_is_asked_again_and_answered():
    fleet = fleet_of(times_of(), replicas=2)
    fleet.env.process(fleet.lose_one(2.5, start_s=3.0))
    found = latencies(fleet, [0.0] * 6)
    assert len(found) == 6
    assert 0 < fleet.statuses.count(0) <= 6
    assert len(fleet.replicas) == 2


@pytest.mark.parametrize("gauge", ["waiting", "waiting + running"])
def test_the_scaler_follows_the_gauge_within_its_bounds(gauge):
    fleet = fleet_of(times_of(), replicas=2, max_batch=1)
    scaler = Scaler(gauge=gauge, target=1.0, least=2, most=6, start_s=5.0)
    fleet.env.process(fleet.poisson(lambda at: 1.0 if 100 <= at < 300 else 0.01, 1500.0))
    fleet.env.process(fleet.scaled(scaler))
    fleet.env.run(until=1600)
    sizes = [size for _, size in fleet.sizes]
    assert (min(sizes), max(sizes)) == (2, 6)
    assert fleet.sizes[-1][1] == 2


def test_with_one_speed_the_number_at_once_is_that_of_m_m_1():
    found = at_once(0.5, lambda _: 1.0)
    assert np.allclose(found[:20], [0.5 * 0.5**n for n in range(20)], rtol=1e-9)
    assert at_once(1.0, lambda _: 1.0) is None


def test_where_nobody_else_asks_a_request_takes_its_own_time():
    assert percentiles(1e-6, np.array([10.0]), lambda _: 2.0, besides_s=0.5) == [5.5, 5.5]
    assert percentiles(1.0, np.array([10.0]), lambda _: 2.0) == [np.inf, np.inf]


def test_the_simulation_of_light_load_agrees_with_the_formula():
    fleet = fleet_of(times_of(lambda rows: float(rows)), max_batch=8)
    draws = itertools.accumulate(np.random.default_rng(0).exponential(1 / 0.05, 600))
    found = latencies(fleet, list(draws), until=50_000)
    p50, p99 = percentiles(0.05, np.array([5.0]), lambda _: 1.0)
    assert np.percentile(found, 50) == pytest.approx(p50, rel=0.15)
    assert np.percentile(found, 99) < 1.1 * p99


def test_under_the_load_test_the_simulation_is_within_15_percent_of_the_measured_server():
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    found = [row for row in rows if row["kind"] == "check" and row["load"] == "closed"]
    assert {row["model"] for row in found} == {"digits", "text"}
    assert max(abs(row[f"{name}_s_apart"]) for row in found for name in ("p50", "p99")) <= 0.15
