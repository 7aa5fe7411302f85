"""An ONNX file becomes a plan with what the build was; each way it can fail is one line and leaves nothing."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dq_deploy.artifacts import sha256_of_file
from dq_deploy.engines.tensorrt.build.builder import BuildOptions, build_plan
from dq_deploy.manifest.plan import is_plan, read_plan_manifest, write_plan_manifest
from dq_deploy.errors import BuildError, DqError, FileProblemError, MissingDependencyError, OptionError
from tests.engines.tensorrt import plan_models

pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")

BUILD = "import sys; from dq_deploy.engines.tensorrt.build.builder import build_plan; build_plan(sys.argv[1], sys.argv[2])"


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    return plan_models.linears(tmp_path_factory.mktemp("onnx") / "one.onnx")


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """Takes two seconds and 500 MiB to build; its weights lie beside it."""
    return plan_models.linears(tmp_path_factory.mktemp("onnx") / "many.onnx", 120, external=True)


@pytest.fixture
def out(tmp_path):
    """A plan in a folder of its own, with a last good one under its name."""
    path = tmp_path / "out" / "unet.plan"
    path.parent.mkdir()
    return path


def children_of(process: int) -> set[int]:
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if int(text.rpartition(")")[2].split()[1]) == process:
            found.add(int(status.parent.name))
    return found


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return value


def refused(kind, onnx, out, options=None) -> str:
    before = children_of(os.getpid())
    with pytest.raises(kind) as caught:
        build_plan(onnx, out, options)
    assert "\n" not in str(caught.value)
    assert list(out.parent.iterdir()) == []
    assert children_of(os.getpid()) <= before
    return str(caught.value)


def test_a_plan_has_a_manifest_of_what_it_was_built_from_and_for(linear, out):
    phases = []
    manifest = build_plan(linear, out, progress=phases.append)
    assert is_plan(out)
    assert manifest.plan_sha256 == sha256_of_file(out)
    assert manifest.onnx_sha256 == sha256_of_file(linear)
    assert manifest.runtime == manifest.target == "tensorrt-rtx"
    assert manifest.runtime_version.count(".") == 3
    assert manifest.portable
    assert manifest.to_json()["profiles"] == [{"sample": {"min": [1, 64], "opt": [1, 64], "max": [8, 64]}}]
    facts = manifest.build
    assert facts.plan_bytes == out.stat().st_size
    assert 0.8 * facts.plan_bytes < facts.text_bytes < facts.plan_bytes  # 4 KiB of weights, the rest sources
    assert 100 < facts.peak_mib < 3000
    assert 0 < facts.build_seconds < facts.seconds < 60
    assert [layer.name for layer in manifest.layers] == ["mid.to_q"]
    assert {"parsing", "Building engine", "writing"} <= {state.phase for state in phases}
    write_plan_manifest(out, manifest)
    read = read_plan_manifest(out)
    assert len(read.manifest_sha256) == 64
    assert replace(read, manifest_sha256=None) == manifest


def test_one_plan_serves_several_compute_capabilities(linear, out):
    single = build_plan(linear, out, BuildOptions(compute_capabilities=("8.9",)))
    both = build_plan(linear, out, BuildOptions(compute_capabilities=("8.0", "8.9", "12.0")))
    assert single.compute_capabilities == ("8.9",)
    assert both.compute_capabilities == ("8.0", "8.9", "12.0")
    assert not both.portable
    assert both.plan_sha256 != single.plan_sha256


def test_weights_beside_the_onnx_file_are_found_and_hashed(slow, out):
    manifest = build_plan(slow, out)
    assert manifest.onnx_data_sha256 == {"many.onnx.data": sha256_of_file(slow.with_name("many.onnx.data"))}
    facts, weights = manifest.build, slow.with_name("many.onnx.data").stat().st_size
    assert weights < facts.plan_bytes - facts.text_bytes < 1.5 * weights


def test_a_crash_of_the_builder_is_one_line_that_names_the_layer(out, tmp_path):
    message = refused(BuildError, plan_models.crashing(tmp_path / "crash.onnx"), out)
    assert "crashed with SIGSEGV in phase" in message
    assert "likely at conv_in, whose quantizer has a scale computed in the graph" in message
    assert 'dq-export `target="tensorrt-rtx"`' in message


def test_a_build_is_stopped_at_its_time_limit(slow, out):
    started = time.monotonic()
    message = refused(BuildError, slow, out, BuildOptions(time_limit_s=1.0))
    assert time.monotonic() - started < 5
    assert "was stopped at its limit of 1 s in phase" in message
    assert "MiB" in message
    assert "`time_limit_s`" in message


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            plan_models.matmul_integer,
            BuildError,
            "refuses node dq/mid.to_q/matmul of layer mid.to_q, operator MatMulInteger of opset 18: UNSUPPORTED_NODE",
        ),
        (
            plan_models.unknown_operator,
            BuildError,
            "refuses node node_17 of layer mid_block.attn, operator com.microsoft.FusedThing of opset 1",
        ),
        (lambda p: plan_models.zero_point(p, np.uint8(128)), BuildError, "mid.to_q has a zero point of type uint8"),
        (lambda p: plan_models.zero_point(p, np.uint8(0)), BuildError, "mid.to_q has a zero point of type uint8"),
        (lambda p: plan_models.zero_point(p, np.int8(3)), BuildError, "of type int8 that is not 0"),
    ],
    ids=["integer product", "unknown operator", "uint8", "uint8 zero", "zero point 3"],
)
def test_what_the_parser_does_not_take_is_named_with_its_layer(make, error, message, out, tmp_path):
    text = refused(error, make(tmp_path / "bad.onnx"), out)
    assert message in text
    assert 'dq-export `target="tensorrt-rtx"`' in text


def cut(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def test_files_that_are_not_ours_or_not_whole_are_refused(out, tmp_path):
    assert "does not exist" in refused(FileProblemError, tmp_path / "none.onnx", out)
    (tmp_path / "noise.onnx").write_bytes(b"\x08\x0a not a model")
    assert "not an ONNX file or is truncated" in refused(FileProblemError, tmp_path / "noise.onnx", out)
    whole = plan_models.linears(tmp_path / "cut.onnx", 2, external=True)
    data = whole.with_name("cut.onnx.data")
    cut(data, 0.5)
    assert "it is truncated: export again" in refused(FileProblemError, whole, out)
    data.unlink()
    assert "keeps its weights in cut.onnx.data" in refused(FileProblemError, whole, out)
    cut(whole, 0.5)
    refused(FileProblemError, whole, out)
    foreign = plan_models.write(tmp_path / "f.onnx", [], [], None, **plan_models.linear_values("sample"))
    assert "made by dq-export" in refused(FileProblemError, foreign, out)
    message = refused(OptionError, plan_models.linears(tmp_path / "cpu.onnx", target="onnxruntime"), out)
    assert "was exported for onnxruntime" in message
    assert 'dq-export `target="tensorrt-rtx"`' in message


def test_inputs_that_differ_from_the_manifest_are_refused(out, tmp_path):
    manifest = plan_models.linear_manifest()
    manifest["inputs"].append({"name": "timestep", "dtype": "float32", "shape": ["B"]})
    path = plan_models.linears(tmp_path / "inputs.onnx", inputs=manifest["inputs"])
    message = refused(FileProblemError, path, out)
    assert "has inputs sample, its manifest says sample, timestep" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute_capabilities": ("9.0",)}, "builds for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"),
        ({"compute_capabilities": ("8.9", "10.0")}, "got 10.0"),
        ({"timing_cache": Path("cache")}, "TensorRT-RTX times no kernels when it builds"),
        ({"shapes": ("latents:1x64",)}, "the engine has sample"),
        ({"shapes": ("sample:4x64..2x64..8x64",)}, "expected min <= opt <= max"),
    ],
)
def test_an_option_this_runtime_does_not_have_is_refused(options, message, linear, out):
    assert message in refused(OptionError, linear, out, BuildOptions(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "openvino"}, "expected one of tensorrt, tensorrt-rtx"),
        ({"compute_capabilities": ("sm_89",)}, "expected numbers such as 8.9"),
        ({"compute_capabilities": ("8.9", "8.9")}, "names one twice"),
        ({"workspace_mib": 0}, "`workspace_mib` got 0"),
        ({"time_limit_s": -1.0}, "`time_limit_s` got -1.0"),
        ({"time_limit_s": float("nan")}, "`time_limit_s` got nan"),
    ],
)
def test_an_impossible_option_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        BuildOptions(**options)


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_library_is_one_line_that_says_what_to_install(runtime, linear, out, monkeypatch):
    monkeypatch.setitem(sys.modules, runtime.replace("-", "_"), None)  # what makes an import fail
    message = refused(MissingDependencyError, linear, out, BuildOptions(runtime=runtime))
    assert f"pip install 'dq-deploy[{runtime}]'" in message


def address_space_of(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[0]) * resource.getpagesize()


def test_a_builder_that_gets_no_more_memory_says_so(slow, out):
    out.write_bytes(b"the last good one")
    before = children_of(os.getpid())

    def limit(state):
        if state.phase == "parsing":
            (builder,) = children_of(os.getpid()) - before
            size = address_space_of(builder) + (100 << 20)
            resource.prlimit(builder, resource.RLIMIT_AS, (size, size))

    with pytest.raises(BuildError, match=r"ran out of memory in phase .* at a peak of [0-9]+ MiB; close other"):
        build_plan(slow, out, progress=limit)
    assert [path.name for path in out.parent.iterdir()] == ["unet.plan"]
    assert out.read_bytes() == b"the last good one"


def test_a_builder_the_system_kills_is_said_to_have_run_out_of_memory(slow, out):
    process = subprocess.Popen([sys.executable, "-c", BUILD, slow, out], stderr=subprocess.PIPE, text=True)
    (builder,) = wait_for(lambda: children_of(process.pid))
    os.kill(builder, signal.SIGKILL)
    _, error = process.communicate(timeout=20)
    assert "was killed in phase" in error
    assert "most likely because memory ran out" in error
    assert list(out.parent.iterdir()) == []


def test_the_builder_dies_with_the_process_that_wanted_the_plan(slow, out):
    process = subprocess.Popen([sys.executable, "-c", BUILD, slow, out])
    (builder,) = wait_for(lambda: children_of(process.pid))
    wait_for(lambda: "tensorrt_rtx" in Path(f"/proc/{builder}/maps").read_text())
    process.kill()
    process.wait()
    wait_for(lambda: not Path(f"/proc/{builder}").exists(), seconds=5)
    assert list(out.parent.iterdir()) == []


def test_what_an_inspection_refuses_does_not_appear(linear, out):
    out.write_bytes(b"the last good one")

    def inspect(plan, manifest):
        assert sha256_of_file(plan) == manifest.plan_sha256
        raise DqError("no")

    with pytest.raises(DqError, match="no"):
        build_plan(linear, out, inspect=inspect)
    assert out.read_bytes() == b"the last good one"
    assert len(list(out.parent.iterdir())) == 1
