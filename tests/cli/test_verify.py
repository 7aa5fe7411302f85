"""`dq-verify`: its exit codes, the line a failure ends with, and which options go together."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dq_deploy import load_record, save_record
from tests.cli.running import command

QUICK = ("--steps-checked", 1, "--inputs", 1, "--threads", 1, "--no-quantization-error")


def test_an_exact_engine_exits_0_and_its_report_says_so(tiny_record_path, tiny_engine, tmp_path):
    written = tmp_path / "report.json"
    done = command("verify", "--ckpt", tiny_record_path, "--engine", tiny_engine, "--exact", "--json", written, *QUICK)
    assert done.code == 0, done.err
    assert json.loads(written.read_text())["exact"] is True


def test_a_record_is_an_engine_too(tiny_record_path):
    done = command("verify", "--engine", tiny_record_path, "--exact", *QUICK)
    assert done.code == 0, done.err


@pytest.fixture(scope="module")
def other_record(tiny_record_path, tmp_path_factory):
    """The record with one weight code changed: not the one the engine was made from."""
    record = load_record(tiny_record_path)
    layer = record.layers["conv_out"]
    code = layer.parts[0].w_code.copy()
    code.flat[0] = 1 if code.flat[0] != 1 else 2
    changed = replace(layer, parts=(replace(layer.parts[0], w_code=code),))
    path = tmp_path_factory.mktemp("other") / "model.pt"
    save_record(replace(record, layers={**record.layers, "conv_out": changed}), path)
    return path


def test_a_record_that_the_engine_was_not_made_from_is_one_line(other_record, tiny_engine):
    done = command("verify", "--ckpt", other_record, "--engine", tiny_engine, "--exact", *QUICK)
    assert done.code in (2, 3)
    assert len([line for line in done.err.splitlines() if line.startswith("error: ")]) == 1


def test_a_share_that_is_not_reached_exits_3(tiny_record_path, tiny_engine):
    done = command("verify", "--ckpt", tiny_record_path, "--engine", tiny_engine, "--require-integer", 1.0, *QUICK)
    assert done.code == 3
    assert "integer" in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--ckpt"),
        (("--require-integer", 2), "expected"),
        (("--steps-checked", 0), "expected"),
        (("--inputs", 0), "expected"),
        (("--isa", "avx2"), "isa"),
    ],
)
def test_options_that_do_not_fit_are_one_line(tiny_record_path, tiny_engine, options, said):
    ckpt = ("--ckpt", tiny_record_path) if options else ()
    done = command("verify", *ckpt, "--engine", tiny_engine, *options)
    assert done.code == 2, done.err
    assert said in done.err
    assert "Traceback" not in done.err


def test_an_engine_that_is_not_there_is_one_line(tiny_record_path, tmp_path):
    done = command("verify", "--engine", tmp_path / "missing.onnx", "--ckpt", tiny_record_path)
    assert done.code == 2
    assert "missing.onnx" in done.err
