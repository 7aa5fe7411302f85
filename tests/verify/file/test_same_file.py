"""What a record makes is the same each time, in every process and on every CPU; a file that differs is named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys

import onnx
import pytest

from dq_deploy import export, load_record, save_record, verify
from dq_deploy.graph.onnx_file import MANIFEST_KEY, manifest_path, read_manifest
from dq_deploy.native.trace.traced import traced_program
from dq_deploy.targets.manifest import versions_used
from dq_deploy.verify.file.same_file import TracedOnce, compare_file
from tests.cli.running import command
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

EXPORTED = """
import hashlib, json, sys
from pathlib import Path
from dq_deploy import export, load_record
from dq_deploy.native.trace.traced import traced_program
record = load_record(sys.argv[1])
export(record, sys.argv[2])
print(hashlib.sha256(Path(sys.argv[2]).read_bytes()).hexdigest())
print(hashlib.sha256(json.dumps(traced_program(record), sort_keys=True).encode()).hexdigest())
"""

WITHOUT_SIMD = {
    "ATEN_CPU_CAPABILITY": "default",
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR AVX2 FMA3",
    "PYTHONHASHSEED": "7",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A record, its files, its trace and its engine."""
    folder = tmp_path_factory.mktemp("same")
    record = random_record(tiny_denoiser(classes=3, **ONE_LEVEL))
    save_record(record, folder / "model.pt")
    save_record(record, folder / "model.safetensors")
    traced = TracedOnce(record)
    export(record, folder / "unet.onnx")
    return record, traced, folder


def edited(made, tmp_path, change):
    """A copy of the engine whose manifest inside was changed."""
    proto = onnx.load(str(made[2] / "unet.onnx"))
    entry = next(p for p in proto.metadata_props if p.key == MANIFEST_KEY)
    manifest = json.loads(entry.value)
    change(manifest)
    entry.value = json.dumps(manifest, sort_keys=True)
    path = tmp_path / "unet.onnx"
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return path


def compared(made, path):
    return compare_file(path, read_manifest(path), made[1])


def test_an_export_is_the_same_without_the_vectors_of_this_cpu_and_in_another_process(made):
    record, _, folder = made
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EXPORTED, str(folder / "model.pt"), str(folder / "without.onnx")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **WITHOUT_SIMD},
    )
    program = json.dumps(traced_program(record), sort_keys=True).encode()
    here = [(folder / "unet.onnx").read_bytes(), program]
    assert done.stdout.split() == [hashlib.sha256(content).hexdigest() for content in here]


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_record_in_memory_and_its_files_make_the_same_graph(made, name):
    record = load_record(made[2] / name)
    found = compare_file(made[2] / "unet.onnx", read_manifest(made[2] / "unet.onnx"), TracedOnce(record))
    assert found.differences == ()
    assert found.unknown == ""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m["layers"][2].update(form="u8 x s8 by hand"), "form is 'u8 x s8 by hand', expected 'u8 x s8'"),
        (lambda m: m["layers"][1].update(reason="because"), "reason is 'because'"),
        (lambda m: m["macs"]["layers"].update(conv_in=1), "manifest.macs.layers.conv_in is 1"),
        (lambda m: m["step_edges"].__setitem__(0, 1.5), "manifest.step_edges[0] is 1.5"),
        (lambda m: m["layers"].pop(), "length of manifest.layers"),
        (lambda m: m.update(single_step_batch=True), "single_step_batch"),
        (lambda m: m.update(notes=["fine"]), "manifest.notes"),
    ],
)
def test_an_edited_manifest_is_named(made, tmp_path, change, named):
    found = compared(made, edited(made, tmp_path, change))
    assert any(named in difference.text() for difference in found.differences), found


def test_a_file_of_other_versions_that_differs_is_unknown_and_refused_by_exact_alone(made, tmp_path):
    def change(manifest):
        manifest["versions"]["torch"] = "1.0"
        manifest["notes"] = ["of another release"]

    path = edited(made, tmp_path, change)
    found = compared(made, path)
    assert found.differences == ()
    assert f"torch '1.0' (here {versions_used()['torch']})" in found.unknown
    report = verify(made[0], path, threads=1, steps=1, inputs=1, traced=made[1])
    assert not report.file_compared
    assert not report.exact
    quick = ("--ckpt", made[2] / "model.pt", "--engine", path, "--threads", 1, "--steps-checked", 1, "--inputs", 1)
    assert command("verify", *quick).code == 0
    done = command("verify", *quick, "--exact")
    assert done.code == 3
    assert "it is not known whether the engine is what its record makes" in done.err


def test_a_file_of_other_versions_that_is_the_same_is_proven(made, tmp_path):
    path = edited(made, tmp_path, lambda m: m["versions"].update(torch="1.0"))
    found = compared(made, path)
    assert found.unknown == ""
    assert [d.place for d in found.differences] == ["sha256 of the content of unet.onnx"]  # it was edited all the same


def test_the_manifest_beside_is_compared_too(made, tmp_path):
    path = edited(made, tmp_path, lambda _m: None)
    side = json.loads(manifest_path(made[2] / "unet.onnx").read_text())
    manifest_path(path).write_text(json.dumps({**side, "onnx_sha256": "0" * 64, "mode": "fast"}))
    texts = [difference.text() for difference in compared(made, path).differences]
    assert any(text.startswith("sha256 of unet.onnx is ") for text in texts)
    assert any("unet.onnx.json.mode is 'fast', expected 'exact'" in text for text in texts)


@pytest.mark.parametrize("said", [None, 5, ""])
def test_a_hash_of_the_file_that_is_no_hash_is_a_difference(said, made, tmp_path):
    path = tmp_path / "unet.onnx"
    shutil.copy(made[2] / "unet.onnx", path)
    side = json.loads(manifest_path(made[2] / "unet.onnx").read_text())
    manifest_path(path).write_text(json.dumps({**side, "onnx_sha256": said}))
    assert [d.place for d in compared(made, path).differences] == ["sha256 of unet.onnx"]


def test_a_file_that_does_not_run_is_named_by_what_differs(made, tmp_path):
    proto = onnx.load(str(made[2] / "unet.onnx"))
    node = next(n for n in proto.graph.node if n.op_type == "Sigmoid")
    node.op_type = "NoSuchOperation"
    path = tmp_path / "unet.onnx"
    path.write_bytes(proto.SerializeToString())
    report = verify(made[0], path, threads=1, traced=made[1])
    assert any("NoSuchOperation" in text for text in report.file_differences)
    assert report.run_failures[0].startswith("the engine does not run: ")
    assert not report.exact
