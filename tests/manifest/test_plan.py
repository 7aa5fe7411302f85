"""A plan's manifest is read only where it is complete and of exactly that plan."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from dq_deploy.artifacts import sha256_of_file
from dq_deploy.errors import FileProblemError
from dq_deploy.manifest.plan import (
    is_plan,
    plan_manifest_of,
    plan_manifest_path,
    read_plan_manifest,
    write_plan_manifest,
)
from dq_deploy.manifest.values import EngineManifest, PlanFacts, PlanManifest
from tests.engines.tensorrt import plan_models

ONNX_MANIFEST = {
    "format": "dq_deploy.manifest",
    "version": 1,
    "target": "tensorrt-rtx",
    "inputs": [],
    "outputs": [],
    "mode": "exact",
    "model_config": {},
    "scheduler_config": None,
    "timesteps": [],
    "step_edges": [],
    "layers": [],
    "notes": ["n"],
}


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "unet.plan"
    path.write_bytes(b"vtrt\0\0\0\0 and so on")
    facts = {
        "onnx_sha256": "0" * 64,
        "plan_sha256": sha256_of_file(path),
        "runtime": "tensorrt-rtx",
        "runtime_version": "1.7.1.116",
        "compute_capabilities": ["8.9"],
        "profiles": [],
    }
    manifest = plan_manifest_of(EngineManifest.from_json(ONNX_MANIFEST), PlanFacts.from_json(facts))
    write_plan_manifest(path, manifest)
    return path


def changed(plan, **values):
    side = plan_manifest_path(plan)
    side.write_text(json.dumps(json.loads(side.read_text()) | values))


def test_what_was_written_is_read_again(plan):
    manifest = read_plan_manifest(plan)
    stored = json.loads(plan_manifest_path(plan).read_text())
    assert manifest.to_json() == stored
    assert (stored["format"], stored["version"]) == (PlanManifest.FORMAT, 1)
    assert manifest.target == "tensorrt-rtx"
    assert manifest.notes == ("n",)
    assert manifest.runtime_version == "1.7.1.116"


def test_a_plan_that_was_replaced_is_refused(plan):
    plan.write_bytes(plan.read_bytes() + b"!")
    with pytest.raises(FileProblemError, match="the plan was replaced or damaged: build it again"):
        read_plan_manifest(plan)
    assert read_plan_manifest(plan, check_hash=False).runtime == "tensorrt-rtx"


@pytest.mark.parametrize(
    "values", [{"notes": ["m"]}, {"timesteps": [1.0]}, {"runtime_version": "1.7.1.117"}, {"manifest_sha256": "0" * 64}]
)
def test_a_manifest_that_says_something_else_than_was_written_is_refused(plan, values):
    changed(plan, **values)
    with pytest.raises(FileProblemError, match=r"unet\.plan\.json is not what was written") as caught:
        read_plan_manifest(plan)
    assert "\n" not in str(caught.value)
    assert read_plan_manifest(plan, check_hash=False).runtime == "tensorrt-rtx"


def test_a_flipped_bit_of_a_plan_or_of_its_manifest_is_refused_or_means_nothing(plan):
    chance, want = random.Random(5), read_plan_manifest(plan)
    for path in (plan, plan_manifest_path(plan)):
        whole = path.read_bytes()
        for _ in range(60):
            data = bytearray(whole)
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            path.write_bytes(data)
            try:
                found = read_plan_manifest(plan)
            except FileProblemError:
                continue
            assert path != plan
            # what is left: blanks, and the name of the hash itself
            assert replace(found, manifest_sha256=None, others={}) == replace(want, manifest_sha256=None)
        path.write_bytes(whole)


def test_a_manifest_of_an_earlier_version_has_no_hash_of_itself(plan):
    side = plan_manifest_path(plan)
    manifest = json.loads(side.read_text())
    del manifest["manifest_sha256"]
    side.write_text(json.dumps({**manifest, "notes": ["m"]}))
    assert read_plan_manifest(plan).notes == ("m",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.unlink(), "does not exist"),
        (lambda p: plan_manifest_path(p).unlink(), "has no manifest unet.plan.json beside it"),
        (lambda p: plan_manifest_path(p).write_text("{"), "is not the manifest of a plan"),
        (lambda p: plan_manifest_path(p).write_text("[1]"), "is not the manifest of a plan"),
        (lambda p: changed(p, format="dq_deploy.manifest"), "is not the manifest of a plan"),
        (lambda p: changed(p, version=2), "has version 2, this release reads 1; upgrade"),
        (
            lambda p: plan_manifest_path(p).write_text(json.dumps({"format": PlanManifest.FORMAT, "version": 1})),
            "lacks plan_sha256, onnx_sha256",
        ),
        (lambda p: changed(p, inputs=None), "was edited: inputs is null, expected a list; build the plan again"),
        (lambda p: changed(p, layers=[{"name": 5}]), r"layers\[0\].name is 5, expected text"),
        (
            lambda p: changed(p, layers=[{"name": "a", "integer": True, "parts": [{"codes": []}]}]),
            r"layers\[0\].parts\[0\].codes is a list, expected text or null",
        ),
        (lambda p: changed(p, compute_capabilities=[8.9]), r"compute_capabilities\[0\] is 8.9, expected a compute"),
        (lambda p: changed(p, profiles=[{"sample": {}}]), r"profiles\[0\].sample.min is missing"),
        (lambda p: changed(p, timesteps=[float("nan")]), r"timesteps\[0\] is NaN, expected a finite number"),
        (lambda p: changed(p, portable="yes"), "portable is 'yes', expected true or false"),
        (lambda p: plan_manifest_path(p).write_text("[" * 100_000), "is not the manifest of a plan"),
    ],
)
def test_a_broken_pair_gets_one_line(plan, change, message):
    change(plan)
    with pytest.raises(FileProblemError, match=message) as caught:
        read_plan_manifest(plan)
    assert "\n" not in str(caught.value)


def test_a_plan_is_known_by_its_manifest_its_first_bytes_or_its_name(plan, tmp_path):
    assert is_plan(plan)
    renamed = tmp_path / "model.bin"
    renamed.write_bytes(plan.read_bytes())
    assert is_plan(renamed)
    assert is_plan(tmp_path / "missing.plan")
    assert not is_plan(tmp_path / "missing.onnx")
    assert not is_plan(plan_models.linears(tmp_path / "unet.onnx"))


def test_a_link_to_a_plan_finds_the_manifest_beside_its_target(tmp_path):
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "unet.plan"
    link = tmp_path / "link.plan"
    link.symlink_to(target)
    target.write_bytes(b"plan")
    assert plan_manifest_path(link) == tmp_path / "there" / "unet.plan.json"
    (tmp_path / "link.plan.json").write_text("{}")  # its own goes first
    assert plan_manifest_path(link) == tmp_path / "link.plan.json"
