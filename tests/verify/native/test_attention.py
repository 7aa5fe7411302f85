"""The proof of attention in codes: exact where it is, and a wrong bit anywhere is named."""

from __future__ import annotations

import copy

import pytest

import dq_deploy
from dq_deploy.native.cpu.arguments import struct_of
from dq_deploy.native.runner import NativeRunner
from tests.tiny import tiny_conditional_denoiser
from tests.verify.native.test_proof import QUICK, proof_of


@pytest.fixture(scope="module")
def record():
    return dq_deploy.quantize(
        tiny_conditional_denoiser(), method="minmax", weight_bits=8, steps=3, samples=2, attention="int8"
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
