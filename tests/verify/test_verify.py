"""An engine that is what it claims to be is proven so, layer by layer."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from dq_deploy import export, load_record, save_record, verify
from dq_deploy.models import call_of_record, input_specs
from dq_deploy.verify.inputs import batch_at, noise_levels, plan_batches, spread_buckets
from dq_deploy.verify.report.page import page_of_report
from tests.cli.running import command
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

TOP_LEVEL = (
    "integer_mac_share", "integer_mac_share_of_quantizable", "max_code_difference", "max_accumulator_difference",
    "layers_compared", "layers_total", "codes_compared", "accumulators_compared", "output_psnr_db", "layers",
)  # fmt: skip


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(4, 8), (8, 8), (6, 6), (4, 4)])
def test_every_layer_is_exact(toy_engine, weight_bits, activation_bits):
    ckpt, engine = toy_engine(weight_bits, activation_bits)
    record = load_record(ckpt)
    report = verify(record, engine, threads=1)
    assert report.failures == ()
    assert report.max_code_difference == report.max_accumulator_difference == 0
    assert report.layers_compared == report.layers_total == len(record.layers)
    assert {layer.status for layer in report.layers} == {"exact"}
    assert report.batch_equals_single or report.notes
    assert report.edges_checked == record.steps - 1
    assert {cell.bucket for layer in report.layers for cell in layer.steps} == set(range(record.steps))
    assert report.integer_mac_share >= 0.95
    assert report.float_path_difference < 1e-5
    assert report.output_psnr_db == 200


def test_the_command_writes_json_and_a_page_that_needs_nothing_else(toy_engine, tmp_path):
    ckpt, engine = toy_engine(4, 8)
    written, page = tmp_path / "verify.json", tmp_path / "report.html"
    done = command(
        "verify", "--ckpt", ckpt, "--engine", engine, "--exact", "--require-integer", 0.95,
        "--json", written, "--html", page,
    )  # fmt: skip
    assert done.code == 0, done.err
    values = json.loads(written.read_text())
    assert all(key in values for key in TOP_LEVEL)
    assert values["exact"] is True
    assert values["layers_compared"] == values["layers_total"] == len(values["layers"])
    text = page.read_text()
    assert not re.search(r"(src|href)=|url\(|@import|<script", text)
    assert text.count("<rect") > values["layers_total"] * 6
    assert "down.0.res.0.conv1" in text


@pytest.mark.thorough
def test_the_demo_model_is_exact_at_w4a8(demo_record, demo_engine):
    report = verify(demo_record, demo_engine, steps=2, inputs=1, threads=2)
    assert report.failures == ()
    assert report.max_code_difference == report.max_accumulator_difference == 0
    assert report.layers_compared == report.layers_total
    assert report.integer_mac_share >= 0.95


def test_mode_fast_is_never_called_exact(tmp_path):
    record, ckpt, written = random_record(tiny_denoiser(**ONE_LEVEL)), tmp_path / "small.pt", tmp_path / "verify.json"
    save_record(record, ckpt)
    export(record, tmp_path / "fast.onnx", mode="fast")
    done = command("verify", "--ckpt", ckpt, "--engine", tmp_path / "fast.onnx", "--exact", "--json", written)
    assert done.code == 3
    assert "conv_in" in done.err
    values = json.loads(written.read_text())
    assert values["max_accumulator_difference"] is None
    assert values["layers_compared"] == 0
    assert values["batch_equals_single"] is None
    assert values["max_code_difference"] == 0
    assert values["integer_mac_share"] >= 0.95
    assert max(cell["max_output_code_difference"] for x in values["layers"] for cell in x["steps"]) <= 1


def test_split_layers_are_compared_part_by_part(tmp_path):
    import dataclasses

    record = random_record(tiny_denoiser(**ONE_LEVEL))
    name = "up_blocks.0.resnets.0.conv1"
    layer = record.layers[name]
    whole = layer.parts[0]
    cut = len(whole.pre) // 3
    halves = tuple(
        dataclasses.replace(
            whole,
            pre=whole.pre[piece],
            w_code=np.ascontiguousarray(whole.w_code[:, :, piece]),
            scale=whole.scale * factor,
        )
        for piece, factor in ((slice(0, cut), np.float32(1)), (slice(cut, None), np.float32(1.5)))
    )
    split = dataclasses.replace(record, layers={**record.layers, name: dataclasses.replace(layer, parts=halves)})
    export(split, tmp_path / "unet.onnx")
    report = verify(split, tmp_path / "unet.onnx", threads=1)
    found = next(layer for layer in report.layers if layer.name == name)
    assert report.failures == ()
    assert len(found.executed) == 2
    assert found.status == "exact"


@pytest.mark.thorough
def test_openvino_is_exact_and_runs_integer_kernels(tmp_path):
    pytest.importorskip("openvino")
    record = random_record(tiny_denoiser(), weight_bits=8)
    export(record, tmp_path / "unet.onnx", target="openvino")
    report = verify(record, tmp_path / "unet.onnx", threads=1)
    assert report.failures == ()
    assert report.max_code_difference == report.max_accumulator_difference == 0
    assert report.layers_compared == report.layers_total
    assert report.integer_mac_share >= 0.95


def test_an_engine_of_another_checkpoint_is_refused(tmp_path, tiny_engine):
    save_record(random_record(tiny_denoiser(classes=3), seed=1), tmp_path / "other.pt")
    done = command("verify", "--ckpt", tmp_path / "other.pt", "--engine", tiny_engine, "--exact")
    assert done.code == 2
    assert "was exported from the record" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--require-integer", "95"), "0.95"),
        (("--steps-checked", "0"), "at least 1"),
        (("--inputs", "0"), "at least 1"),
        (("--json", "/nonexistent/folder/x.json"), "does not exist"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(tiny_record_path, tiny_engine, arguments, word):
    done = command("verify", "--ckpt", tiny_record_path, "--engine", tiny_engine, *arguments)
    assert done.code == 2
    assert word in done.err
    assert len(done.err.splitlines()) == 1


def test_the_margin_is_measured_against_the_float_model(toy_engine):
    ckpt, engine = toy_engine(4, 8)
    record = load_record(ckpt)
    report = verify(record, engine, model=tiny_denoiser(**ONE_LEVEL), threads=1)
    assert len(report.output_steps) == record.steps
    assert report.output_margin_db == min(step.margin_db for step in report.output_steps)
    assert report.output_margin_db >= 20
    assert all(step.simulation_psnr_db is not None for step in report.output_steps)
    assert "simulation against the float model" in page_of_report(report)


def test_buckets_are_spread_with_both_ends():
    assert spread_buckets(20, 5) == [0, 5, 10, 14, 19]
    assert spread_buckets(3, 5) == [0, 1, 2]
    assert spread_buckets(1, 5) == [0]


def test_every_bucket_is_met_and_one_batch_mixes_steps(tiny_record):
    batches = plan_batches(tiny_record, steps=5, inputs=2, mixed=True, seed=0)
    assert {int(b) for batch in batches for b in batch.buckets} == set(range(tiny_record.steps))
    mixed = [batch for batch in batches if batch.kind == "mixed"]
    assert len(set(mixed[0].buckets.tolist())) == 5
    alone = plan_batches(tiny_record, steps=5, inputs=2, mixed=False, seed=0)
    assert all(len(set(batch.buckets.tolist())) == 1 for batch in alone)


def test_inputs_carry_the_noise_of_their_step(tiny_record):
    signal, noise = noise_levels(tiny_record.scheduler_config, tiny_record.timesteps)
    assert (np.diff(signal) < 0).all()
    np.testing.assert_allclose(signal**2 + noise**2, 1, rtol=1e-5)
    batch = batch_at(tiny_record, [0, tiny_record.steps - 1], seed=3, kind="mixed")
    assert set(batch.feeds) == {spec.name for spec in input_specs(call_of_record(tiny_record))}
    again = batch_at(tiny_record, [0, tiny_record.steps - 1], seed=3, kind="mixed")
    np.testing.assert_array_equal(batch.feeds["sample"], again.feeds["sample"])
