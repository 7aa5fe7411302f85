"""`dq-bench` prints a table, writes the documented JSON and a chart."""

from __future__ import annotations

import json

import pytest

from dq_deploy import save_record
from tests.cli.running import command
from tests.engines.cuda.gpu import needs_gpu, without_driver
from tests.tiny import random_record, tiny_denoiser

QUICK = ["--batch", "1,2", "--runs", "2", "--warmup", "1", "--threads", "1"]


def test_a_comparison_is_printed_and_written(tiny_engine, tiny_record_path, tmp_path):
    more = ["--baseline", "--ckpt", tiny_record_path, "--json", tmp_path / "bench.json", "--png", tmp_path / "b.png"]
    done = command("bench", "--engine", tiny_engine, *QUICK, *more)
    assert done.code == 0, done.err
    values = json.loads((tmp_path / "bench.json").read_text())
    assert values["speedup"] > 0
    assert len(values["rounds"]) == 7
    assert 0 < values["integer_mac_share"] <= 1
    assert (tmp_path / "b.png").stat().st_size > 1000
    for word in ("latency p50", "speedup", "integer share", "images a second"):
        assert word in done.out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--baseline", "--rounds", "3"], "at least 7"),
        (["--batch", "0"], "--batch got 0"),
        (["--threads", "0"], "threads is 0"),
        (["--json", "missing/bench.json"], "does not exist"),
        (["--engine", "missing.onnx"], "missing.onnx"),
        (["--engine", "."], "engine . is a folder, expected an ONNX file, a plan or a record"),
        (["--ckpt", "model.pt"], "--ckpt model.pt was given without --baseline, which alone has it; leave it out"),
        (["--png", "c.jpg"], "--png is c.jpg, expected a name that ends in .png"),
    ],
)
def test_a_mistake_is_one_line(more, message, tiny_engine):
    done = command("bench", "--engine", tiny_engine, *more)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1


def test_the_record_of_another_engine_is_refused_for_the_baseline(tiny_engine, tmp_path):
    save_record(random_record(tiny_denoiser(classes=3), seed=1), tmp_path / "other.pt")
    done = command("bench", "--engine", tiny_engine, "--baseline", "--ckpt", tmp_path / "other.pt")
    assert (done.code, "was made from the record" in done.err) == (2, True)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx to build a plan")
    from tests.engines.tensorrt.plans import build_linear

    return build_linear(tmp_path_factory.mktemp("plan"))


@without_driver
@pytest.mark.parametrize("more", [[], ["--baseline", "--ckpt", "missing.pt"]])
def test_a_plan_without_a_driver_is_one_line_before_anything_is_built(plan, more, tmp_path):
    done = command("bench", "--engine", plan, *more, "--json", tmp_path / "bench.json")
    assert done.code == 2
    assert "no NVIDIA driver" in done.err
    assert done.err.count("\n") == 1
    assert not done.out
    assert list(tmp_path.iterdir()) == []


@without_driver
def test_sampling_with_a_plan_gets_as_far_as_the_missing_driver(plan, tmp_path):
    done = command("sample", "--engine", plan, "--out", tmp_path / "samples.png")
    assert done.code == 2
    assert "no NVIDIA driver" in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@needs_gpu("a plan for this GPU")
def test_a_plan_is_timed_and_sampled_on_a_gpu(tmp_path_factory, tiny_record, tiny_record_path):
    pytest.importorskip("tensorrt_rtx", reason="needs an NVIDIA driver and tensorrt-rtx")
    from dq_deploy import export
    from dq_deploy.engines.cuda.backends import open_cuda
    from dq_deploy.engines.tensorrt.build.builder import BuildOptions, build_plan
    from dq_deploy.manifest.plan import write_plan_manifest
    from tests.engines.tensorrt.test_runner_gpu import RTX_BUILDS_FOR

    capability = open_cuda().facts().compute_capability
    if capability not in RTX_BUILDS_FOR:
        pytest.skip(f"needs an NVIDIA driver and a GPU that TensorRT-RTX builds for, this one has {capability}")
    folder = tmp_path_factory.mktemp("plan")
    path, onnx = folder / "unet.plan", folder / "unet.onnx"
    export(tiny_record, onnx, target="tensorrt-rtx")
    write_plan_manifest(path, build_plan(onnx, path, BuildOptions(compute_capabilities=(capability,))))
    more = ["--baseline", "--ckpt", tiny_record_path, "--json", folder / "bench.json"]
    done = command("bench", "--engine", path, "--batch", "1,2", "--runs", "2", *more)
    assert done.code == 0, done.err
    values = json.loads((folder / "bench.json").read_text())
    assert set(values["timings"]) == {"cuda-graph", "cuda", "host"}
    assert values["gpu_memory"]["engine"]["peak_mib"] > 0
    assert values["environment"]["gpu"]["compute_capability"] == capability
    done = command("sample", "--engine", path, "--labels", "0,1", "--out", folder / "samples.png")
    assert done.code == 0, done.err
