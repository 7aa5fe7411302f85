"""`dq-build` makes a plan of an ONNX file or of a record and says what it is, or says in one line why not."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dq_deploy.artifacts import sha256_of_file
from dq_deploy.manifest.plan import read_plan_manifest
from tests.cli.running import command
from tests.engines.tensorrt import plan_models

pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")

DQ_BUILD = "import sys; sys.argv[0] = 'dq-build'; from dq_deploy.cli.build import main; main()"
FILE_LIMIT = 200_000  # bytes; a plan is larger, the manifest is not reached


@pytest.fixture(scope="module")
def from_record(tiny_record_path, tmp_path_factory):
    """A plan built from a record, with its ONNX kept, and how the command ended."""
    folder = tmp_path_factory.mktemp("built")
    out, kept = folder / "unet.plan", folder / "kept.onnx"
    done = command("build", "--ckpt", tiny_record_path, "--out", out, "--float-type", "float32", "--keep-onnx", kept)
    return done, out, kept


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> Path:
    return plan_models.linears(tmp_path_factory.mktemp("onnx") / "many.onnx", 120, external=True)


def builders_of(process: int) -> list[Path]:
    """Folders in /proc of the builder processes that a command has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process and b"build.worker" in (folder / "cmdline").read_bytes():
                found.append(folder)
        except OSError:
            continue
    return found


def test_a_build_describes_the_plan_and_writes_its_manifest(from_record, tmp_path):
    _, _, onnx_path = from_record
    out, summary = tmp_path / "unet.plan", tmp_path / "build.json"
    shapes = "sample:1x1x8x8..2x1x8x8..4x1x8x8"
    done = command(
        "build", "--onnx", onnx_path, "--out", out, "--compute-capability", "8.0, 8.9", "--shapes", shapes,
        "--workspace-mib", 256, "--json", summary, "--log", tmp_path / "log.txt",
    )  # fmt: skip
    assert done.code == 0, done.err
    values = json.loads(summary.read_text())
    manifest = read_plan_manifest(out)
    assert values["compute_capabilities"] == list(manifest.compute_capabilities) == ["8.0", "8.9"]
    assert values["build"]["workspace_mib"] == 256
    assert manifest.profiles[0]["timestep"].text() == "1..2..4"
    assert [row.name for row in manifest.layers_built] == [layer.name for layer in manifest.layers]
    assert sum(values["executed"].values()) == values["layers"] == len(manifest.layers)
    assert 0 < values["integer_mac_share"] <= 1
    assert "shapes of sample" in done.out
    assert "integer share of all MACs" in done.out
    assert "Parsing node" in (tmp_path / "log.txt").read_text()


def test_a_record_is_exported_and_built_at_once(from_record):
    done, out, kept = from_record
    assert done.code == 0, done.err
    assert "exported in" in done.err
    manifest = read_plan_manifest(out)
    assert manifest.runtime == "tensorrt-rtx"
    assert manifest.options.float_type == "float32"
    assert manifest.onnx_sha256 == sha256_of_file(kept)
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "kept.onnx", "kept.onnx.json", "unet.plan", "unet.plan.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "got neither of --onnx and --ckpt"),
        (["--onnx", "a.onnx", "--ckpt", "model.pt"], "got both --onnx and --ckpt"),
        (["--onnx", "a.onnx", "--float-type", "float16", "--conv", "gemm"], "--float-type, --conv needs --ckpt"),
        (["--onnx", "missing.onnx"], "missing.onnx does not exist"),
        (["--ckpt", "missing.pt"], "missing.pt"),
        (["--ckpt", "missing.pt", "--conv", "winograd"], "conv is 'winograd'"),
        (["--ckpt", "missing.pt", "--compute-capability", "9.0"], "builds for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"),
        (["--ckpt", "missing.pt", "--keep-onnx", "kept.bin"], "ends in .onnx"),
        (["--onnx", "a.onnx", "--runtime", "tflite"], "expected one of tensorrt, tensorrt-rtx"),
        (["--onnx", "a.onnx", "--out", "b.onnx"], "expected a name such as unet.plan"),
        (["--onnx", "a.onnx", "--out", "missing/unet.plan"], "does not exist"),
        (["--onnx", "a.onnx", "--json", "unet.plan.json"], "two outputs are named"),
        (["--onnx", "a.onnx", "--workspace-mib", "-5"], "--workspace-mib got -5"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = arguments if "--out" in arguments else [*arguments, "--out", "unet.plan"]
    done = command("build", *given)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_shapes_that_do_not_fit_are_refused_before_the_record_is_exported(tiny_record_path, tmp_path, monkeypatch):
    monkeypatch.setattr("dq_deploy.verify.plan.attested_build.export", lambda *_, **__: pytest.fail("exported"))
    out = tmp_path / "unet.plan"
    for shapes, message in (("image:1x1x8x8", "names input 'image'"), ("sample:1x3x8x8", "which is fixed at 1")):
        done = command("build", "--ckpt", tiny_record_path, "--out", out, "--shapes", shapes)
        assert (done.code, message in done.err) == (2, True), done.err
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_stopped_build_ends_its_builder_and_leaves_nothing(number, code, word, slow, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", DQ_BUILD, "--onnx", slow, "--out", tmp_path / "unet.plan"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("build: ")  # the builder is at work
    (builder,) = builders_of(process.pid)
    os.kill(process.pid, number)
    _, error = process.communicate(timeout=20)
    assert process.returncode == code
    assert error.splitlines()[-1] == f"error: {word}"
    assert not builder.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_keeps_the_last_plan(slow, tmp_path):
    out = tmp_path / "unet.plan"
    out.write_bytes(b"the last good one")
    done = subprocess.run(
        [sys.executable, "-c", DQ_BUILD, "--onnx", slow, "--out", out],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT)),
    )
    assert done.returncode == 2, done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"error: cannot write {out}")
    assert "free space" in error
    assert out.read_bytes() == b"the last good one"
    assert list(tmp_path.iterdir()) == [out]


def test_a_crash_of_the_builder_is_one_line_and_code_two(tmp_path):
    onnx = plan_models.crashing(tmp_path / "crash.onnx")
    folder = tmp_path / "out"
    folder.mkdir()
    done = command("build", "--onnx", onnx, "--out", folder / "unet.plan")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(f"error: the builder of {onnx} crashed with SIGSEGV")
    assert list(folder.iterdir()) == []
