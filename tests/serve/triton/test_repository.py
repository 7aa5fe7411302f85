"""What is written for Triton: two models that load, deterministic, whole or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dq_deploy import export
from dq_deploy.artifacts import sha256_of_file
from dq_deploy.errors import DqError, SchedulerWarning
from dq_deploy.graph.onnx_file import read_manifest
from dq_deploy.manifest.plan import plan_manifest_of, write_plan_manifest
from dq_deploy.manifest.values import PlanFacts, SizeRange
from dq_deploy.serve.triton import write_triton_repository
from tests.serve.triton.served import inputs_of, parameters_of
from tests.tiny import SCHEDULER, tiny_denoiser


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory, tiny_engine):
    out = tmp_path_factory.mktemp("triton") / "repository"
    return write_triton_repository(out, model=None, engine=tiny_engine, name="tiny")


@pytest.fixture
def tiny_model(tmp_path):
    """The engine's denoiser, with its scheduler's file beside it."""
    tiny_denoiser(classes=3).module.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_denoiser_alone_is_two_models(written):
    assert list(tree(written.path)) == [
        "tiny/1/loop.json",
        "tiny/1/model.py",
        "tiny/config.pbtxt",
        "tiny/requirements.txt",
        "tiny_denoiser/1/model.onnx",
        "tiny_denoiser/config.pbtxt",
    ]
    assert written.inputs == ("LABEL", "SEED", "STEPS", "COUNT", "HEIGHT", "WIDTH")
    assert (written.output, written.not_batched) == ("IMAGES", "")


def test_the_same_inputs_give_the_same_files(written, tiny_engine, tmp_path):
    again = write_triton_repository(tmp_path / "again", model=None, engine=tiny_engine, name="tiny")
    assert tree(again.path) == tree(written.path)


def test_the_loop_imports_nothing_of_this_package(written):
    text = (written.path / "tiny" / "1" / "model.py").read_text()
    assert "dq_deploy" not in text
    assert "dq_kernels" not in text


def test_one_number_a_sample_is_a_column_that_becomes_a_vector(written):
    inputs = inputs_of(written.path / "tiny_denoiser" / "config.pbtxt")
    assert {name: (dims, column) for name, (_, dims, column) in inputs.items()} == {
        "sample": ((1, -1, -1), False),
        "timestep": ((1,), True),
        "class_labels": ((1,), True),
    }


def test_the_configuration_says_what_triton_is_to_do(written):
    text = (written.path / "tiny_denoiser" / "config.pbtxt").read_text()
    for line in (
        'platform: "onnxruntime_onnx"',
        "max_batch_size: 8",
        "dynamic_batching {\n  preferred_batch_size: [ 8 ]\n  max_queue_delay_microseconds: 0\n}",
        "instance_group {\n  count: 1\n  kind: KIND_CPU\n}",
        "version_policy: { latest: { num_versions: 1 } }",
        "model_warmup {",
    ):
        assert line in text


def test_processes_that_draw_side_by_side_wait_for_each_other(tiny_engine, tmp_path):
    out = write_triton_repository(tmp_path / "out", model=None, engine=tiny_engine, name="t", instances=3).path
    assert "max_queue_delay_microseconds: 500" in (out / "t_denoiser" / "config.pbtxt").read_text()
    assert "count: 3" in (out / "t" / "config.pbtxt").read_text()


def test_both_models_say_what_the_manifest_says(written, tiny_engine):
    manifest = read_manifest(tiny_engine)
    integer = sum(manifest.macs.layers[layer.name] for layer in manifest.layers if layer.integer)
    for model in ("tiny", "tiny_denoiser"):
        facts = {name: value["string_value"] for name, value in parameters_of(written.path / model).items()}
        assert facts["dq_record_sha256"] == manifest.record_sha256
        assert facts["dq_content_sha256"] == manifest.content_sha256
        assert facts["dq_declared_integer_mac_share"] == f"{integer / manifest.macs.of_all:.6f}"
        assert (facts["dq_target"], facts["dq_mode"]) == ("onnxruntime", "exact")
        assert facts["dq_made_by_onnxruntime"] == manifest.versions["onnxruntime"]


def test_a_record_is_exported_as_by_the_library(written, tiny_record_path, tmp_path):
    from_record = write_triton_repository(tmp_path / "out", model=None, engine=tiny_record_path, name="tiny").path
    assert tree(from_record) == tree(written.path)


def test_weights_beside_the_graph_come_along(tiny_record, tmp_path, monkeypatch):
    monkeypatch.setattr("dq_deploy.graph.onnx_file.write_onnx.__kwdefaults__", {"external_above": 1000})
    export(tiny_record, tmp_path / "big.onnx")
    assert (tmp_path / "big.onnx.data").is_file()
    out = write_triton_repository(tmp_path / "out", model=None, engine=tmp_path / "big.onnx", name="big").path
    found = tree(out / "big_denoiser" / "1")
    assert found["big.onnx.data"] == (tmp_path / "big.onnx.data").read_bytes()
    import onnxruntime

    onnxruntime.InferenceSession(str(out / "big_denoiser" / "1" / "model.onnx"), providers=["CPUExecutionProvider"])


def test_mode_fast_is_not_batched_and_says_why(tiny_record, tmp_path):
    export(tiny_record, tmp_path / "fast.onnx", mode="fast")
    found = write_triton_repository(tmp_path / "out", model=None, engine=tmp_path / "fast.onnx", name="fast")
    assert "one step bucket a batch" in found.not_batched
    text = (found.path / "fast_denoiser" / "config.pbtxt").read_text()
    assert "dynamic_batching" not in text
    assert f"# No dynamic batching: {found.not_batched}." in text


def test_what_the_loop_needs_is_named_with_its_versions(written, tiny_engine, tmp_path):
    from importlib import metadata

    names = ("torch", "diffusers")
    own = [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]
    text = (written.path / "tiny" / "requirements.txt").read_text()
    assert text.splitlines() == [*own, "numpy<2"] == list(written.requirements)
    lms = write_triton_repository(tmp_path / "out", model=None, engine=tiny_engine, name="t", scheduler="lms")
    assert any(one.startswith("scipy==") for one in lms.requirements)


def a_plan(tiny_engine, place, runtime="tensorrt", sizes=((1,), (4,), (4,))):
    """A file that is named a plan, with a manifest as dq-build writes it; nothing can run it."""
    plan = place / "unet.plan"
    plan.write_bytes(b"ftrt of nothing")
    shapes = {"sample": (1, 8, 8), "timestep": (), "class_labels": ()}
    profile = {
        name: SizeRange(**{which: (*size, *rest) for which, size in zip(("min", "opt", "max"), sizes, strict=True)})
        for name, rest in shapes.items()
    }
    facts = PlanFacts(
        onnx_sha256="0" * 64,
        plan_sha256=sha256_of_file(plan),
        runtime=runtime,
        runtime_version="10.13.3.9",
        compute_capabilities=("8.9",),
        profiles=(profile,),
    )
    manifest = replace(read_manifest(tiny_engine), target=runtime)
    write_plan_manifest(plan, plan_manifest_of(manifest, facts))
    return plan


def test_a_plan_is_for_the_gpu_and_takes_the_batches_it_was_built_for(tiny_engine, tmp_path):
    plan = a_plan(tiny_engine, tmp_path)
    found = write_triton_repository(tmp_path / "out", model=None, engine=plan, name="p")
    text = (found.path / "p_denoiser" / "config.pbtxt").read_text()
    assert found.engine.read_bytes() == plan.read_bytes()
    assert found.engine.name == "model.plan"
    for line in ('platform: "tensorrt_plan"', 'backend: "tensorrt"', "max_batch_size: 4", "kind: KIND_GPU"):
        assert line in text
    facts = parameters_of(found.path / "p_denoiser")
    assert facts["dq_plan_sha256"]["string_value"] == sha256_of_file(plan)
    assert facts["dq_compute_capabilities"]["string_value"] == "8.9"


REFUSED = {
    "a name with a slash": ({"name": "a/b"}, "name is 'a/b'"),
    "a name that hides": ({"name": ".a"}, "name is '.a'"),
    "an empty name": ({"name": ""}, "name is ''"),
    "a batch of none": ({"max_batch": 0}, "max_batch is 0"),
    "no process": ({"instances": 0}, "instances is 0"),
    "an unknown scheduler": ({"scheduler": "Nothing"}, "scheduler is 'Nothing'"),
    "no model": ({"model": Path("/no/such/folder")}, "does not exist"),
    "no engine": ({"engine": Path("/no/such.onnx")}, "/no/such.onnx"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_nothing_is_left(case, tiny_engine, tmp_path):
    changes, words = REFUSED[case]
    with pytest.raises(DqError, match=words) as caught:
        write_triton_repository(tmp_path / "out", **{"model": None, "engine": tiny_engine, "name": "t", **changes})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_engines_that_triton_does_not_run_are_refused(tiny_record, tiny_engine, tmp_path):
    export(tiny_record, tmp_path / "ov.onnx", target="openvino")
    (tmp_path / "rtx").mkdir()
    (tmp_path / "own.dqn").write_bytes(b"x")
    for engine, words in (
        (tmp_path / "ov.onnx", "for openvino, expected one for onnxruntime"),
        (a_plan(tiny_engine, tmp_path / "rtx", "tensorrt-rtx"), "a plan of tensorrt-rtx, expected one of tensorrt"),
        (tmp_path / "own.dqn", "program file"),
    ):
        with pytest.raises(DqError, match=words):
            write_triton_repository(tmp_path / "out", model=None, engine=engine, name="t")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_left_as_it_is(tiny_engine, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(DqError, match="folder with files in it"):
        write_triton_repository(tmp_path / "out", model=None, engine=tiny_engine, name="t")
    assert tree(tmp_path / "out") == {"mine": b"mine"}


def test_a_write_that_fails_leaves_nothing(tiny_engine, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dq_deploy.serve.triton.repository.shutil.copyfile", fail)
    with pytest.raises(DqError, match="No space left"):
        write_triton_repository(tmp_path / "out", model=None, engine=tiny_engine, name="t")
    assert not list(tmp_path.iterdir())


def test_a_pipeline_around_another_denoiser_is_refused(tiny_engine, demo_model_dir, tmp_path):
    with pytest.raises(DqError, match="expected"):
        write_triton_repository(tmp_path / "out", model=demo_model_dir, engine=tiny_engine, name="t")


def test_the_settings_are_plain_json(written):
    settings = json.loads((written.path / "tiny" / "1" / "loop.json").read_text())
    assert (settings["denoiser"], settings["labels"], settings["size"]) == ("tiny_denoiser", [0, 2], [8, 8])


def test_a_scheduler_that_differs_from_the_engines_is_refused_or_said(tiny_engine, tiny_model, tmp_path):
    def written_with(**values):
        config = tiny_model / "scheduler_config.json"
        config.write_text(json.dumps({**SCHEDULER, **values}))
        return write_triton_repository(tmp_path / "out", model=tiny_model, engine=tiny_engine, name="t")

    with pytest.raises(DqError, match="has num_train_timesteps 500, expected 1000 as the record was calibrated with"):
        written_with(num_train_timesteps=500)
    with pytest.warns(SchedulerWarning, match="clip_sample False, .* calibrated with True, which counts; quantize"):
        settings = json.loads((written_with(clip_sample=False).path / "t" / "1" / "loop.json").read_text())
    assert settings["scheduler"]["clip_sample"] is True
