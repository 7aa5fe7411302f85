"""What docs/plans.md writes out fits a plan that was really built, and what it runs does what our sampler does."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

SHAPES = "sample:1x1x32x32..4x1x32x32..8x1x32x32"


@pytest.fixture(scope="module")
def text(repository):
    return (repository / "docs" / "plans.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def manifest(made_once, demo_record):
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx to build a plan")
    from dq_deploy import export
    from dq_deploy.engines.tensorrt.build.builder import BuildOptions, build_plan
    from dq_deploy.manifest.plan import read_plan_manifest, write_plan_manifest

    def make(path):
        onnx = path.with_suffix(".trt.onnx")
        export(demo_record, onnx, target="tensorrt-rtx")
        options = BuildOptions(compute_capabilities=("8.0",), shapes=(SHAPES,))
        write_plan_manifest(path, build_plan(onnx, path, options))

    return read_plan_manifest(made_once("serving.plan", make)).to_json()


@pytest.fixture(scope="module")
def blocks(text):
    return {name: body for body, name in re.findall(r"```python\n(# the (\w+):.*?)```", text, re.DOTALL)}


def sizes_at(spec, batch):
    """The sizes of an input or output at a batch; pictures of this build have 32 x 32 pixels."""
    known = {"B": batch, "height": 32, "width": 32}
    return [known.get(size, size) for size in spec["shape"]]


def test_the_shapes_of_the_page_are_those_of_its_build(text, manifest):
    assert f"--shapes {SHAPES}" in text
    wanted = ",".join(
        f"{spec['name']}:{'x'.join(str(size) for size in sizes_at(spec, 4))}" for spec in manifest["inputs"]
    )
    assert text.count(f"--shapes={wanted} ") == 2


def test_every_key_the_page_explains_is_in_the_manifest(text, manifest):
    table = text.split("| key |")[1].split("\n\n")[0]
    keys = [key for row in table.splitlines()[2:] for key in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert len(keys) >= 12
    assert set(keys) - set(manifest) == {"layers_built"}  # added by dq-build from the attestation


def fields(entry):
    return {
        "name": re.search(r'name: "(\w+)"', entry).group(1),
        "type": re.search(r"data_type: (\w+)", entry).group(1),
        "dims": [int(size) for size in re.search(r"dims: \[ ([\d, ]+) \]", entry).group(1).split(",")],
        "reshaped": "reshape: { shape: [ ] }" in entry,
    }


def test_the_configuration_for_triton_is_that_of_the_plan(text, manifest):
    (config,) = re.findall(r"```protobuf\n(.*?)```", text, re.DOTALL)
    assert config.count("{") == config.count("}")
    assert config.count("[") == config.count("]")
    types = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}
    for kind in ("input", "output"):
        body = re.search(rf"^{kind} \[\n(.*?)^\]", config, re.DOTALL | re.MULTILINE).group(1)
        found = [fields(entry) for entry in re.findall(r"^  \{\n(.*?)^  \}", body, re.DOTALL | re.MULTILINE)]
        wanted = [
            {
                "name": spec["name"],
                "type": types[spec["dtype"]],
                "dims": sizes_at(spec, 1)[1:] or [1],
                "reshaped": len(spec["shape"]) == 1,
            }
            for spec in manifest[f"{kind}s"]
        ]
        assert found == wanted
    (profile,) = manifest["profiles"]
    assert f"max_batch_size: {profile['sample']['max'][0]}\n" in config


def test_the_configuration_for_triton_is_a_model_configuration(text):
    """Every field name and type, by the server's own message definition."""
    pytest.importorskip("grpc", reason="needs tritonclient[grpc]")
    pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]")
    from google.protobuf import text_format

    (config,) = re.findall(r"```protobuf\n(.*?)```", text, re.DOTALL)
    assert len(text_format.Parse(config, pb2.ModelConfig()).input) == 3


def test_the_loop_in_plain_python_is_short_and_names_the_plans_tensors(blocks, manifest):
    code = blocks["engine"] + blocks["loop"]
    compile(code, "plans.md", "exec")
    assert "dq_deploy" not in code
    assert len([line for line in code.splitlines() if line.strip()]) <= 38
    (call,) = re.findall(r"noise = run\((.*)\)", blocks["loop"])
    assert re.findall(r"(\w+)=", call) == [spec["name"] for spec in manifest["inputs"]]
    assert [f'"{spec["name"]}"' for spec in manifest["outputs"]] == ['"output"']
    assert set(re.findall(r'manifest\["(\w+)"\]', code)) <= set(manifest)


def test_the_engines_half_uses_what_the_libraries_have(blocks, manifest):
    trt = pytest.importorskip("tensorrt_rtx")
    core, driver = pytest.importorskip("cuda.core"), pytest.importorskip("cuda.bindings.driver")
    owners = {
        "trt": trt,
        "driver": driver,
        "device": core.Device,
        "stream": core.Stream,
        "runtime": trt.Runtime,
        "engine": trt.ICudaEngine,
        "context": trt.IExecutionContext,
    }
    used = set(re.findall(rf"\b({'|'.join(owners)})\.(\w+)", re.sub(r'".*?"', "", blocks["engine"])))
    assert len(used) >= 13
    assert not [f"{owner}.{name}" for owner, name in used if not hasattr(owners[owner], name)]


def test_the_loop_draws_what_diffusers_draws(blocks, manifest, demo_engine, tmp_path, monkeypatch):
    """With ONNX Runtime in the plan's place, from the same noise."""
    import diffusers
    import torch

    from dq_deploy.open_engine import open_engine

    (tmp_path / "unet.plan.json").write_text(json.dumps(manifest))
    monkeypatch.chdir(tmp_path)
    with open_engine(demo_engine, threads=1) as runner:
        names = {"json": json, "np": np, "run": lambda **feeds: runner.run(feeds)["output"]}
        exec(blocks["loop"], names)
        config = manifest["scheduler_config"]
        scheduler = diffusers.DDIMScheduler.from_config(config)
        scheduler.set_timesteps(len(manifest["timesteps"]))
        assert scheduler.timesteps.tolist() == manifest["timesteps"][::-1]
        sample = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 1, 32, 32)).astype(np.float32))
        for step in scheduler.timesteps:
            feeds = {"sample": sample.numpy(), "timestep": np.full(4, float(step), np.float32)}
            noise = torch.from_numpy(runner.run({**feeds, "class_labels": np.arange(4)})["output"])
            sample = scheduler.step(noise, step, sample).prev_sample
    # the same arithmetic in float64 and float32, through 20 quantized steps
    assert np.abs(names["sample"] - sample.numpy()).mean() < 0.02
