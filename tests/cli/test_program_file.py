"""`dq-export --target native` writes a file that every command takes as the engine."""

from __future__ import annotations

import json

import pytest
from dq_kernels.cpu.library import known_isas

from tests.cli.running import command


@pytest.fixture(scope="module")
def path(tiny_record_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("program") / "model.dqn"
    done = command("export", "--target", "native", "--ckpt", tiny_record_path, "--out", out, "--isa", "portable")
    assert done.code == 0, done.err
    assert "packed for portable" in done.out
    assert f"dq-verify --ckpt ... --engine {out} --exact" in done.out
    return out


def test_info_shows_what_it_is_packed_for_and_its_record(path, tiny_record_path, tmp_path):
    done = command("info", path, "--json", tmp_path / "info.json")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "info.json").read_text())
    assert command("info", tiny_record_path, "--json", tmp_path / "record.json").code == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert found["kind"] == "program"
    assert found["program"]["isa"] == "portable"
    assert found["program"]["packed_parts"] > 10
    assert found["layers"] == record["layers"]
    assert found["content_sha256"] == record["content_sha256"]
    assert "portable" in done.out


def test_info_tells_how_it_would_run_here(path, tmp_path):
    done = command("info", "--native", path, "--json", tmp_path / "info.json")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "info.json").read_text())["native"]["packed_weights_mib"] > 0


def test_the_same_pictures_as_from_the_record(path, tiny_record_path, tmp_path):
    pictures = []
    for engine in (path, tiny_record_path):
        out = tmp_path / "samples.png"
        done = command("sample", "--engine", engine, "--labels", "0,1", "--steps", 2, "--out", out, "--threads", 1)
        assert done.code == 0, done.err
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[1]


def test_it_is_proven(path, tiny_record_path):
    asked = ("--exact", "--steps-checked", 1, "--inputs", 1, "--no-quantization-error", "--threads", 1)
    done = command("verify", "--engine", path, "--ckpt", tiny_record_path, *asked)
    assert (done.code, done.err.count("warning:")) == (0, 0)
    done = command("verify", "--engine", path, "--ckpt", tiny_record_path, *asked, "--isa", known_isas()[-1])
    assert done.code == 0
    assert done.err.count("warning: ") == 1
    alone = command("verify", "--engine", path)
    assert alone.code == 2
    assert "give it as --ckpt" in alone.err


def test_it_is_timed(path, tmp_path):
    asked = ("--batch", 1, "--rounds", 1, "--runs", 1, "--warmup", 1, "--threads", 1, "--isa", "portable")
    done = command("bench", "--engine", path, *asked, "--json", tmp_path / "bench.json")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "bench.json").read_text())["environment"]["native"]["isa"] == "portable"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "unet.onnx"], "ends in .dqn"),
        (["--isa", "sse9"], "expected one of portable, avx2"),
        (["--mode", "fast"], "--target native takes --isa"),
        (["--conv", "gemm"], "--target native takes --isa"),
        (["--target", "onnxruntime", "--isa", "avx2", "--out", "unet.onnx"], "--isa goes with --target native"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, message, tiny_record_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"--ckpt": str(tiny_record_path), "--out": "unet.dqn", "--target": "native"}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    done = command("export", *(word for pair in given.items() for word in pair))
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_one_line(path, tmp_path):
    bad = tmp_path / "bad.dqn"
    whole = bytearray(path.read_bytes())
    whole[-9] ^= 1
    bad.write_bytes(bytes(whole))
    for name in ("info", "sample"):
        given = [bad] if name == "info" else ["--engine", bad, "--out", tmp_path / "x.png"]
        done = command(name, *given)
        assert done.code == 2
        assert "is not what was written" in done.err
        assert done.err.count("\n") == 1
