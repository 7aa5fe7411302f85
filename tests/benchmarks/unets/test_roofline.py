"""Work and bytes of a step are counted from the program that runs, and every operation is in one class."""

from __future__ import annotations

import json

import pytest
from dq_kernels.cpu.library import known_isas

from benchmarks.unets import roofline
from dq_deploy.models import quantizable_layers
from dq_deploy.native.runner import NativeRunner
from tests.tiny import random_record, tiny_conditional_denoiser

ISA = known_isas()[-1]


@pytest.fixture(scope="module")
def denoiser():
    return tiny_conditional_denoiser()


@pytest.fixture(scope="module")
def runner(denoiser):
    with NativeRunner(random_record(denoiser), threads=1) as opened:
        yield opened


def test_the_work_of_a_layer_is_that_of_its_module(denoiser, runner):
    ops, layers = runner.executor.plan(2).program.ops, runner.record.layers
    counted: dict[str, int] = {}
    for op in ops:
        if "layer" in op.attributes:
            counted[op.attributes["layer"]] = counted.get(op.attributes["layer"], 0) + roofline.work_of(op, layers)
    macs = {site.name: site.macs for site in quantizable_layers(denoiser.module, denoiser.call)}
    assert counted == {name: 2 * 2 * macs[name] for name in layers}


def test_bytes_are_those_of_the_arrays_and_grow_with_the_batch(runner):
    program = runner.executor.plan(2).program
    op = next(op for op in program.ops if op.kind == "group_norm_silu_quantize")
    count = op.reads["x"].sizes[0] * op.reads["x"].sizes[1] * op.reads["x"].sizes[2]
    parameters, values = roofline.bytes_of(op, program, ())
    assert values == 4 * count + count  # float32 in, one code a value out
    assert parameters == 2 * 4 * op.reads["x"].sizes[2]


@pytest.mark.skipif(len(known_isas()) < 2, reason="plain C++ has no bound of its own")
def test_every_operation_is_in_one_class_and_the_page_shows_them(runner, monkeypatch):
    monkeypatch.setattr(roofline.peaks, "operations", lambda loop, threads: 100.0)
    monkeypatch.setattr(roofline.peaks, "copy", lambda log2_bytes, threads: 10.0)
    each = roofline.costs(runner.executor, 2, ISA, 1)
    ops = runner.executor.plan(2).program.ops
    rows = list(roofline.rows_of(runner.executor, each, [2.0] * len(ops), 2))
    assert sum(row.operations for row in rows) == len(ops)
    assert {row.name for row in rows} <= roofline.TITLES.keys()
    assert sum(row.ms for row in rows) == pytest.approx(2e-3 * len(ops))
    work = [cost for cost in each if cost.bound == "work"]
    assert work
    assert all(cost.limit_us == pytest.approx(cost.work / 100e3) for cost in work)
    row = {
        "key": {"model": "tiny", "bits": "W4A8", "isa": ISA, "threads": 1, "batch": 2},
        "commit": "abc",
        "environment": {"cpu": "a CPU", "date": "2026-11-30T00:00:00"},
        "peaks": {"vpdpbusd": 100.0},
        "classes": [roofline.asdict(row) for row in rows],
        "step_ms": 1.0,
        "others_busy": 0.0,
    }
    page = roofline.page([json.loads(json.dumps(row)), row])
    assert page.count("## tiny") == 1
    assert f"| **all** | {len(ops)} |" in page


def test_times_of_other_operations_than_the_programs_are_refused(runner):
    ops = runner.executor.plan(1).program.ops
    with pytest.raises(AssertionError, match="was timed where the program has"):
        list(roofline.in_order(ops, iter([(op, 1.0) for op in reversed(ops)])))
