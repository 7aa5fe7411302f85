"""The simulation of servers: its parts against sums that are known, and its results against the measured server."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import simpy

from benchmarks.serving.simulation.check import checked, loads_of
from benchmarks.serving.simulation.fleet import Fleet, Scaler
from benchmarks.serving.simulation.measure import RESULTS, interval
from benchmarks.serving.simulation.queueing import at_once, percentiles
from benchmarks.serving.simulation.speed import BIN_SECONDS, lasts, speeds
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
    assert max(found) < 12.0  # one after another they take 20


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


def test_a_pause_that_one_call_met_lasts_as_long_for_another_and_is_there_once():
    known = speeds([[(at / 100, 0.01, 0.01) for at in range(100)] + [(1.0, 0.5, 0.01)]], 3.0)
    assert lasts(known, 0.2, 0.3) == pytest.approx(0.3)
    assert lasts(known, 1.0, 0.01) == pytest.approx(0.5, abs=2 * BIN_SECONDS)
    assert lasts(known, 0.99, 0.02) == pytest.approx(0.51, abs=2 * BIN_SECONDS)
    assert lasts(known, 2.0, 0.01) == pytest.approx(0.01)
    assert lasts(known, 5.0, 0.01) == 0.01


def test_where_one_thread_was_idle_the_others_say_how_fast_the_machine_was():
    known = speeds([[(0.0, 1.0, 0.5)], [(0.0, 3.0, 0.75)]], 3.0)
    assert {known[int(at / BIN_SECONDS)] for at in (0.1, 0.9)} == {0.5}
    assert {known[int(at / BIN_SECONDS)] for at in (1.1, 2.9)} == {0.25}


def trace_of(calls):
    """Calls (when, rows, seconds) of a load of ten seconds, and holds that take no time."""
    holds = [(float(at), kind, 0.001) for at in range(10) for kind in ("check", "first", "between", "last")]
    short = [(float(at), 0.001) for at in range(10)]
    seen = [(at, SHAPE, rows, rows, seconds) for at, rows, seconds in calls]
    return {"calls": seen, "holds": holds, "after": short, "files": short, "requests": [(0.0, 0.5)], "beats": []}


def test_full_calls_that_were_seen_on_a_slow_machine_alone_are_not_slow_by_themselves():
    quick = [(at / 10, 1, 0.002) for at in range(50)]
    slow = [(5 + at / 2, 8, 0.16) for at in range(10)]  # ten times as long as eight calls of one row
    times = Times.of_trace(trace_of(quick + slow), 0.0, 10.0, 0.0, [0.51])
    assert times.usual_call(SHAPE, 8) == pytest.approx(0.016)
    assert times.call(SHAPE, 8, None, 2.0) == pytest.approx(0.016, rel=0.1)
    assert times.call(SHAPE, 8, None, 6.0) == pytest.approx(0.16, rel=0.1)
    assert times.outside == pytest.approx(0.01)
    assert Times.of_json(json.loads(json.dumps(times.json()))).usual_call(SHAPE, 8) == pytest.approx(0.016)


def test_the_interval_holds_the_true_percentile_and_is_wider_where_neighbours_share_a_queue():
    draws = np.random.default_rng(3).exponential(1.0, 4000)
    low, high = interval(list(draws), 99)
    assert low < -np.log(0.01) < high
    queued = np.repeat(draws[:100], 40)
    low, high = interval(list(queued), 50)
    alone = interval(list(np.random.default_rng(0).permutation(queued)), 50)
    assert high - low > 3 * (alone[1] - alone[0])


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


def test_under_the_load_test_the_earlier_form_was_within_15_percent_of_the_measured_server():
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    found = [row for row in rows if row["kind"] == "check" and row["load"] == "closed"]
    assert {row["model"] for row in found} == {"digits", "text"}
    assert max(abs(row[f"{name}_s_apart"]) for row in found for name in ("p50", "p99")) <= 0.15


def test_one_replica_is_simulated_within_15_percent_of_the_measured_server():
    """But for a percentile in twenty, which the measured one's own interval holds: it is not known more closely."""
    loads = [load for load in loads_of(RESULTS) if load["times"].speeds and load["requests"] < 1000]
    assert {load["model"] for load in loads} == {"digits", "text"}
    found = [row[f"{name}_s_is"] for row in map(checked, loads) for name in ("p50", "p99")]
    assert set(found) <= {"near", "in the interval"}
    assert found.count("near") >= 0.95 * len(found)
