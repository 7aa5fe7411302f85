"""dq-verify and dq-info on plans: requested against executed, unknown is not integer, and one line for each failure."""

from __future__ import annotations

import ctypes
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dq_deploy import load_record, save_record
from dq_deploy.artifacts import sha256_of_file
from dq_deploy.errors import FileProblemError
from dq_deploy.manifest.plan import read_plan_manifest, write_plan_manifest
from dq_deploy.verify.plan.run import agreement_text, least_agreement_db
from dq_deploy.verify.share import attest
from tests.cli.running import command
from tests.engines.tensorrt.rtx_plans import needs_builder
from tests.tiny import random_record, tiny_denoiser

pytestmark = needs_builder


def has_driver() -> bool:
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False


def failed(done: Any) -> str:
    """The one line of a failed command, without what it said while working."""
    lines = done.err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


def test_each_layer_is_printed_with_what_it_was_asked_to_be_and_became(small_plans, tmp_path):
    out = (tmp_path / "v.json", tmp_path / "v.html")
    arguments = ("--engine", small_plans / "int.plan", "--json", out[0], "--html", out[1])
    done = command("verify", *arguments, "--ckpt", small_plans / "int.pt", "--require-integer", 0.8)
    assert done.code == 0, done.err
    report = json.loads(out[0].read_text())
    for layer in report["layers"]:
        assert layer["name"] in done.out
        assert (layer["requested"], layer["executed"]) == ("integer", "integer")
    assert "23 integer" in done.out
    assert f"{report['integer_mac_share']:.2%} of all" in done.out
    assert "standing alone" in done.out
    assert report["record_checked"] is True
    assert report["exact"] is None
    assert report["im2col_bytes"] > 0
    assert {row["reason"] for row in report["float_layers"]} == {"not quantized"}
    page = out[1].read_text()
    assert "every layer asked to be integer is" in page
    assert "conv_in" in page
    assert "<script" not in page


def test_the_float_plan_reports_zero_and_fails_where_integers_are_required(small_plans):
    done = command("verify", "--engine", small_plans / "float.plan", "--require-integer", 0.5)
    assert done.code == 3
    assert "integer share is 0.0000 of all MACs, required 0.5; not integer:" in failed(done)
    assert "nothing in this plan multiplies integers" in done.err


@pytest.fixture
def of_another_version(small_plans, tmp_path) -> Path:
    """The integer plan, pretending another builder made it; its manifest knows."""
    data = bytearray((small_plans / "int.plan").read_bytes())
    data[0x1B] += 1
    path = tmp_path / "x.plan"
    path.write_bytes(data)
    manifest = read_plan_manifest(small_plans / "int.plan")
    write_plan_manifest(path, replace(manifest, plan_sha256=sha256_of_file(path)))
    return path


def test_unknown_is_not_integer(of_another_version, tmp_path):
    done = command("verify", "--engine", of_another_version, "--require-integer", 0.01, "--html", tmp_path / "v.html")
    assert done.code == 3
    assert "integer share is 0.0000" in failed(done)
    assert "23 unknown" in done.out
    assert "only studied for 1.7.1.116" in done.out
    assert "only studied for 1.7.1.116" in (tmp_path / "v.html").read_text()
    assert attest(of_another_version).integer_mac_share == 0


def test_the_share_of_a_plan_is_had_as_that_of_any_engine(small_plans):
    integer, floats = attest(small_plans / "int.plan"), attest(small_plans / "float.plan")
    assert integer.float_layers == ()
    assert 0.8 < integer.integer_mac_share < integer.integer_mac_share_of_quantizable < 1
    assert (floats.integer_mac_share, len(floats.float_layers)) == (0, 23)


@pytest.mark.skipif(has_driver(), reason="this machine has a driver; what is said without one cannot be seen")
def test_exact_needs_a_gpu_and_says_so_in_one_line(small_plans):
    done = command("verify", "--engine", small_plans / "int.plan", "--exact")
    assert done.code == 3
    assert failed(done).startswith("error: not compared: needs a GPU (")


def test_why_a_plan_was_not_run_is_said_in_flags(small_plans, tmp_path, monkeypatch):
    def refuse(path: Path) -> None:
        raise FileProblemError(
            f"plan {path.name} is for another GPU: build it with dq-build `compute_capabilities` 9.0"
        )

    monkeypatch.setattr("dq_deploy.verify.plan.run.open_engine", refuse)
    files = tmp_path / "v.json", tmp_path / "v.html"
    done = command("verify", "--engine", small_plans / "int.plan", "--exact", "--json", files[0], "--html", files[1])
    assert done.code == 3
    for text in (done.out, done.err, *(path.read_text() for path in files)):
        assert "`compute_capabilities`" not in text
    report = json.loads(files[0].read_text())
    for text in (report["comparison"], *report["failures"], failed(done)):
        assert "dq-build --compute-capability 9.0" in text


def test_a_plan_of_another_record_and_wrong_options_are_the_users_mistakes(small_plans, tmp_path):
    save_record(random_record(tiny_denoiser()), tmp_path / "other.pt")
    plan = small_plans / "int.plan"
    cases = [
        (("--engine", plan, "--ckpt", tmp_path / "other.pt"), "was made from another record"),
        (("--engine", plan, "--model", tmp_path), "--model does not go with a plan"),
        (("--engine", plan, "--threads", 2), "--threads does not go with a plan"),
        (("--engine", plan, "--require-integer", 2), "expected a share from 0 to 1"),
        (("--engine", small_plans / "int.onnx"), "give it as --ckpt"),
        (("--engine", tmp_path / "gone.plan"), "does not exist"),
    ]
    for arguments, message in cases:
        done = command("verify", *arguments)
        assert done.code == 2, arguments
        assert message in failed(done)


def test_a_plan_without_its_manifest_or_with_anothers_is_refused(small_plans, tmp_path):
    shutil.copy(small_plans / "int.plan", tmp_path / "x.plan")
    for name in ("verify", "info"):
        arguments = ("--engine", tmp_path / "x.plan") if name == "verify" else (tmp_path / "x.plan",)
        assert "has no manifest x.plan.json beside it" in failed(command(name, *arguments))
        shutil.copy(small_plans / "kept.plan.json", tmp_path / "x.plan.json")
        done = command(name, *arguments)
        assert done.code == 2
        assert "belongs to a plan with SHA-256" in failed(done)
        (tmp_path / "x.plan.json").unlink()


def test_info_shows_a_plans_manifest_and_what_its_layers_became(small_plans, tmp_path):
    done = command("info", small_plans / "int.plan", "--json", tmp_path / "i.json")
    assert done.code == 0, done.err
    summary = json.loads((tmp_path / "i.json").read_text())
    for text in ("tensorrt-rtx 1.7.1.116", "8.0, 8.9", "integer 23", "sample 1x1x4x4..1x1x8x8..8x1x12x12", "mid_block"):
        assert text in done.out
    assert summary["kind"] == "plan"
    assert summary["executed"] == {"integer": 23}
    assert summary["integer_mac_share_when_built"] == attest(small_plans / "int.plan").integer_mac_share


def test_outputs_of_two_engines_are_compared_at_several_steps(small_plans):
    """A plan's runner needs a GPU: two graphs on ONNX Runtime stand at both ends here."""
    from dq_deploy.open_engine import open_engine

    record = load_record(small_plans / "int.pt")
    with (
        open_engine(small_plans / "int.onnx", engine="onnxruntime", optimize=False) as one,
        open_engine(small_plans / "float.onnx", require_manifest=False) as other,
    ):
        assert least_agreement_db(one, one, record, batch=2) == 200
        psnr = least_agreement_db(other, one, record, batch=1)
    assert 0 < psnr < 60
    assert agreement_text(psnr, "float32").startswith("outputs differ")
    assert agreement_text(200.0, "float16").startswith("outputs agree: 200.0 dB")
    assert np.isfinite(psnr)
