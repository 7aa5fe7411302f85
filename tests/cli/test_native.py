"""Every command takes a record as the engine; what is missing or cannot run is one line."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from dq_kernels.cpu.library import known_isas
from PIL import Image
from safetensors.numpy import load_file

from dq_deploy import save_record
from tests.cli.running import command
from tests.tiny import random_record, tiny_conditional_denoiser, tiny_denoiser


@pytest.fixture
def no_kernels(monkeypatch, tmp_path):
    """The machine as if the CPU library had not been built."""
    from dq_kernels.cpu import library

    monkeypatch.setenv("DQ_KERNELS_LIBRARY", str(tmp_path / "none.so"))
    library.library.cache_clear()
    yield
    monkeypatch.undo()
    library.library.cache_clear()


def test_the_native_engine_and_the_simulation_draw_the_same(tiny_record_path, tmp_path):
    pictures = []
    for source in (["--engine", tiny_record_path], ["--ckpt", tiny_record_path]):
        out = tmp_path / "samples.png"
        done = command("sample", *source, "--labels", "0,1,2", "--steps", 4, "--out", out, "--threads", 1)
        assert done.code == 0, done.err
        pictures.append(np.asarray(Image.open(out)).astype(int)[:, 90:])
    assert np.abs(pictures[0] - pictures[1]).max() <= 3


def test_latents_come_from_a_text_conditioned_record(tmp_path):
    save_record(random_record(tiny_conditional_denoiser(), steps=3), tmp_path / "model.pt")
    out = tmp_path / "latents.safetensors"
    done = command(
        "sample", "--engine", tmp_path / "model.pt", "--count", 2, "--steps", 3, "--out", out, "--threads", 1
    )
    assert done.code == 0, done.err
    assert next(iter(load_file(out).values())).shape == (2, 4, 8, 8)


def test_attention_in_bfloat16_is_an_option_of_every_command_that_runs_a_record(tmp_path):
    record, out = tmp_path / "model.pt", tmp_path / "latents.safetensors"
    save_record(random_record(tiny_conditional_denoiser(), steps=3), record)
    drawn = {}
    for precision in ("float32", "bf16"):
        asked = ("--attention", precision, "--threads", 1)
        done = command("sample", "--engine", record, "--count", 1, "--steps", 2, "--out", out, *asked)
        assert done.code == 0, done.err
        drawn[precision] = next(iter(load_file(out).values()))
    gap = np.abs(drawn["float32"] - drawn["bf16"]).max()
    assert 0 < gap < 0.1 * np.abs(drawn["float32"]).max()
    timed = ("--batch", 1, "--rounds", 1, "--runs", 1, "--warmup", 1, "--threads", 1, "--json", tmp_path / "bench.json")
    done = command("bench", "--engine", record, "--attention", "bf16", *timed)
    assert done.code == 0, done.err
    assert "attention in bf16 by" in done.out
    assert "8 of 8 operations" in done.out
    assert json.loads((tmp_path / "bench.json").read_text())["environment"]["native"]["attention"] == "bf16"


@pytest.mark.parametrize(
    ("command_line", "message"),
    [
        (("bench", "--attention", "bf15"), "attention is 'bf15', expected one of float32, bf16"),
        (("bench", "--attention", "bf16", "--device", "cuda"), "device"),
        (("sample", "--out", "x.png", "--attention", "fp8"), "attention is 'fp8', expected one of float32, bf16"),
    ],
)
def test_a_precision_of_attention_that_is_not_there_is_one_line(tiny_record_path, command_line, message, tmp_path):
    name, *options = command_line
    options = [tmp_path / o if o == "x.png" else o for o in options]
    done = command(name, "--engine", tiny_record_path, *options)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "x.png").exists()


def test_attention_of_a_simulation_has_no_precision(tiny_record_path, tmp_path):
    done = command("sample", "--ckpt", tiny_record_path, "--attention", "bf16", "--out", tmp_path / "x.png")
    assert done.code == 2
    assert "--attention bf16 was given without --engine" in done.err


def test_sampling_with_another_record_is_refused(tiny_record_path, tmp_path):
    save_record(random_record(tiny_denoiser(classes=3), seed=1), tmp_path / "other.pt")
    done = command("sample", "--ckpt", tmp_path / "other.pt", "--engine", tiny_record_path, "--out", tmp_path / "x.png")
    assert done.code == 2
    assert "was exported from the record" in done.err
    assert done.err.count("\n") == 1


def test_info_tells_how_a_record_would_run_here(tiny_record_path, tmp_path):
    done = command("info", "--native", tiny_record_path, "--json", tmp_path / "info.json")
    assert done.code == 0, done.err
    assert f"{known_isas()[-1]}, " in done.out
    native = json.loads((tmp_path / "info.json").read_text())["native"]
    assert sum(native["kernels"].values()) == 49
    assert native["in_numpy"] == {}
    assert {operation["name"]: operation["count"] for operation in native["numpy_operations"]} == {
        "sin": 1,
        "cos": 1,
        "embedding": 1,
    }
    assert 0 < sum(operation["share"] for operation in native["numpy_operations"]) < 1
    assert "1 in numpy" in done.out
    assert list(native["attention_forms"]) == ["float32", "bf16", "int8"]
    assert f"--attention bf16: {native['attention_forms']['bf16'][:9]}" in done.out
    assert native["packed_weights_mib"] > 0


def test_info_without_the_option_opens_nothing(tiny_record_path, no_kernels):
    done = command("info", tiny_record_path)
    assert done.code == 0, done.err


@pytest.mark.parametrize("name", ["verify", "bench", "sample", "info"])
def test_missing_kernels_are_one_line(name, tiny_record_path, tmp_path, no_kernels):
    arguments = {
        "verify": ("--engine", tiny_record_path),
        "bench": ("--engine", tiny_record_path),
        "sample": ("--engine", tiny_record_path, "--out", tmp_path / "x.png"),
        "info": ("--native", tiny_record_path),
    }[name]
    done = command(name, *arguments)
    assert done.code == 2
    assert "the CPU kernels are not built" in done.err
    assert "install a C++17 compiler" in done.err
    assert done.err.count("\n") == 1
    assert not done.out


def test_an_operation_without_a_kernel_runs(tmp_path):
    record = random_record(tiny_denoiser())
    config = {**record.model_config, "act_fn": "mish"}
    save_record(dataclasses.replace(record, model_config=config), tmp_path / "model.pt")
    done = command("sample", "--engine", tmp_path / "model.pt", "--steps", 2, "--out", tmp_path / "x.png")
    assert done.code == 0, done.err


def test_a_record_does_not_run_elsewhere(tiny_record_path):
    done = command("verify", "--engine", tiny_record_path, "--runtime", "onnxruntime")
    assert done.code == 2
    assert "export it first" in done.err


def test_info_native_of_a_graph_is_refused(tiny_engine):
    done = command("info", "--native", tiny_engine)
    assert done.code == 2
    assert "--native goes with a record" in done.err
