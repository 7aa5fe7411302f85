"""The proof of attention in codes: exact where it is, and a wrong bit anywhere is named."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

import dq_deploy
from dq_deploy.cli.verify import refuse
from dq_deploy.errors import GuaranteeError
from dq_deploy.native.cpu.arguments import Bound, struct_of
from dq_deploy.native.observe.attention import attention_counts
from dq_deploy.native.runner import NativeRunner
from dq_deploy.native.trace.traced import traced_program
from dq_deploy.verify.native.attention import _first
from dq_deploy.verify.report.pictures import kernels_bar
from tests.native.file.mutations import places
from tests.tiny import ONE_TEXT_LEVEL, tiny_conditional_denoiser
from tests.verify.native.test_proof import QUICK, proof_of


@pytest.fixture(scope="module")
def record():
    return dq_deploy.quantize(
        tiny_conditional_denoiser(**ONE_TEXT_LEVEL),
        method="minmax",
        weight_bits=8,
        steps=3,
        samples=2,
        attention="int8",
    )


def proven(record):
    with NativeRunner(copy.deepcopy(record), threads=1, attention="int8", finite_check=False) as runner:
        return proof_of(record, runner, QUICK)


def test_it_is_exact_and_counts_as_integer(record):
    report = proven(record)
    assert report.failures == ()
    own = report.attention
    assert (own.precision, own.operations) == ("int8", len(record.attention))
    assert own.mac_share == report.macs.attention / report.macs.of_all
    assert report.integer_mac_share == report.macs.integer / report.macs.of_all
    assert report.macs.integer > report.macs.attention
    assert own.heads_compared > 0
    assert own.codes_moved < 1e-3 * own.codes_compared
    assert 0 < own.rms_error < 0.2
    assert report.float_path_share <= 1
    assert report.attention_in_integers == report.macs.attention
    assert "attention products, int8" in str(kernels_bar(report))
    assert "attention products, float" not in str(kernels_bar(report))
    share = report.integer_mac_share
    with pytest.raises(GuaranteeError) as caught:
        refuse(report, exact=False, require_integer=share + (1 - share) / 2)
    assert "attention products" not in str(caught.value)


def test_attention_in_float_counts_as_float_in_every_place(record):
    with NativeRunner(copy.deepcopy(record), threads=1, finite_check=False) as runner:
        report = proof_of(record, runner, QUICK)
        assert attention_counts(runner.executor) == (len(record.attention), len(record.attention))
    assert report.attention_in_integers == 0
    assert "attention products, float" in str(kernels_bar(report))
    with pytest.raises(GuaranteeError, match=r"attention products \(40.4%\): float"):
        refuse(report, exact=False, require_integer=0.999)


def test_the_attentions_that_run_in_codes_are_counted(record):
    name = next(iter(record.attention))
    some = dataclasses.replace(record, attention={name: record.attention[name]})
    with NativeRunner(some, threads=1, attention="int8") as runner:
        assert attention_counts(runner.executor) == (1, len(record.attention))


def damaged(change):
    def wrong(bound, op, index):
        args = struct_of(bound, op, index)
        if op.kind == "attention":
            change(args)
        return args

    return wrong


def halve(args):
    args.scale *= 0.5


def narrow(args):
    args.codes.k.q_max -= 1


def of_another_step(args):
    args.codes.v.scale += 4


def norm(args):
    args.codes.normed = 1


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (halve, "code of the softmax"),
        (narrow, "accumulator of q and k"),
        (of_another_step, "output"),
        (norm, "code of the softmax"),
    ],
)
def test_a_wrong_number_anywhere_is_named(record, monkeypatch, change, what):
    monkeypatch.setattr("dq_deploy.native.cpu.executor.struct_of", damaged(change))
    found = [text for text in proven(record).failures if text.startswith("attention ")]
    assert found
    assert what in found[0]


def test_a_wrong_input_in_front_of_it_is_a_wrong_float_operation(record, monkeypatch):
    def wrong(bound, op, index):
        args = struct_of(bound, op, index)
        if op.kind == "attention":
            args.q, args.k = args.k, args.q  # of one shape in self-attention
        return args

    monkeypatch.setattr("dq_deploy.native.cpu.executor.struct_of", wrong)
    assert proven(record).failures


def test_a_wrong_scale_in_the_program_is_named(record, monkeypatch):
    """Kernel and program agree on it: the float module tells."""

    def halved(*given, **options):
        program = copy.deepcopy(traced_program(*given, **options))
        for holder, key in places(program):
            if key == "scale" and "name" in holder:
                holder[key] *= 0.5
        return program

    monkeypatch.setattr("dq_deploy.native.runner.traced_program", halved)
    found = proven(record).failures
    assert any("the scale of attention down_blocks.0" in text and "is 0.25, the float" in text for text in found)


def test_an_accumulator_that_ran_over_is_wrong():
    """Its low 32 bits are those of the right sum."""
    want = np.array([[2**31 + 5]], np.int64)
    assert "accumulator at (0, 0) is -2147483643" in _first("accumulator", want.astype(np.int32), want)
    assert _first("accumulator", np.array([[7]], np.int32), np.array([[7]], np.int64)) == ""


def test_the_step_is_not_asked_of_the_engine(record, monkeypatch):
    def fill(self, buckets):
        own_fill(self, np.zeros_like(buckets))

    own_fill = Bound.fill
    monkeypatch.setattr(Bound, "fill", fill)
    found = [text for text in proven(record).failures if text.startswith("attention ")]
    assert found
