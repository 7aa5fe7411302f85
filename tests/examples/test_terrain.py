"""The pretrained terrain network becomes a pipeline of diffusers that computes the same; nothing is downloaded here."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import diffusers
import numpy as np
import onnx
import pytest
import torch

from dq_deploy.errors import ModelError
from tests.examples.terrain_network import network_file, write_wheel


@pytest.fixture(scope="module")
def terrain(repository):
    """The example script as a module."""
    path = repository / "examples" / "terrain.py"
    sys.path.insert(0, str(path.parent))  # for the module beside it
    spec = importlib.util.spec_from_file_location("example_terrain", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look it up
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop(spec.name)
    sys.path.remove(str(path.parent))


@pytest.fixture(scope="module")
def data():
    """A small ONNX file with the same names."""
    return network_file()


@pytest.fixture(scope="module")
def wheel(terrain, data, tmp_path_factory):
    files = {terrain.NETWORK: data, **{name: b"licence" for name in terrain.LICENSES}}
    return write_wheel(tmp_path_factory.mktemp("wheel") / "terrain.whl", files)


def test_the_folder_is_a_pipeline_that_computes_what_the_file_does(terrain, wheel, data, tmp_path, capsys):
    folder = tmp_path / "pipeline"
    terrain.main([str(folder), "--wheel", str(wheel)])
    assert "largest difference" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipeline"]
    assert (folder / "LICENSE").read_bytes() == b"licence"
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert isinstance(pipeline, diffusers.ConsistencyModelPipeline)
    assert pipeline.unet.config.num_class_embeds == 100
    assert terrain.largest_difference(pipeline, data) < terrain.LARGEST_DIFFERENCE
    pictures = pipeline(batch_size=2, class_labels=[0, 99], output_type="np").images
    assert pictures.shape == (2, 16, 16, 1)


def test_factors_keep_sums_within_a_limit_and_what_is_computed_as_it_is(terrain, data):
    from terrain_factors import blocks_of, factors_of, with_factors

    pipeline = terrain.make_pipeline(terrain.read_network(data))  # small sums, of which none gets a factor
    unet = pipeline.unet
    for name, by in (("down_blocks.0.resnets.0", 1e3), ("mid_block.resnets.0", 1e3), ("up_blocks.1.resnets.1", 1e5)):
        unet.get_submodule(f"{name}.conv2").weight.detach().mul_(by)
    before, blocks = terrain.largest_outputs(pipeline), list(blocks_of(unet))
    factors = factors_of(blocks, before, groups=32, limit=8.0)
    assert len(set(factors.values())) > 1
    assert factors[0] < 1
    joined = [[half.stream for half in b.reads] for b in blocks if [half.channels for half in b.reads] == [64, 32]]
    assert len(joined) == 2  # 64 and 32 channels in groups of 3
    assert all(factors[one] == factors[other] for one, other in joined)
    x, labels = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 99])
    with torch.no_grad():
        wanted = unet(x, 100.0, class_labels=labels).sample
        changed = with_factors(unet, before, limit=8.0)
        found = changed(x, 100.0, class_labels=labels).sample
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    pipeline.register_modules(unet=changed)
    after = terrain.largest_outputs(pipeline)
    assert max(after[block.name] for block in blocks) <= 8
    assert max(before[block.name] for block in blocks) > 1000


def test_another_network_is_told_from_the_converted_one(terrain, data):
    pipeline = terrain.make_pipeline(terrain.read_network(data))
    for name in ("conv_in", "class_embedding", "down_blocks.1.attentions.0.to_q", "up_blocks.0.resnets.0.norm1"):
        weight = pipeline.unet.get_submodule(name).weight
        before = weight.detach().clone()
        weight.detach().mul_(1.5)
        assert terrain.largest_difference(pipeline, data, count=2) > terrain.LARGEST_DIFFERENCE, name
        weight.detach().copy_(before)


def test_a_difference_writes_no_folder(terrain, wheel, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(terrain, "largest_difference", lambda pipeline, data: 0.5)
    with pytest.raises(SystemExit) as stopped:
        terrain.main([str(tmp_path / "pipeline"), "--wheel", str(wheel)])
    assert stopped.value.code == 3
    assert "differs by 0.5 from the package's" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_said_in_one_line(terrain, wheel, tmp_path, monkeypatch, capsys):
    empty = write_wheel(tmp_path / "empty.whl", {})
    other = write_wheel(tmp_path / "other.whl", {terrain.NETWORK: b"no", **{name: b"" for name in terrain.LICENSES}})
    (tmp_path / "text.whl").write_text("no archive")
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="ERROR: no network\n")
    monkeypatch.setattr(terrain.subprocess, "run", lambda *a, **k: failed)
    for options, said in (
        ([tmp_path, "--wheel", wheel], "exists already"),
        ([tmp_path / "new", "--wheel", tmp_path / "none.whl"], "cannot be read as a wheel"),
        ([tmp_path / "new", "--wheel", tmp_path / "text.whl"], "cannot be read as a wheel"),
        ([tmp_path / "new", "--wheel", empty], "expected the wheel of adaptive-terrain-diffusion"),
        ([tmp_path / "new", "--wheel", other], "not an ONNX file"),
        ([tmp_path / "new"], "pip could not download"),
    ):
        with pytest.raises(SystemExit) as stopped:
            terrain.main([str(option) for option in options])
        text = capsys.readouterr().err
        assert stopped.value.code == 2
        assert text.startswith("error: ")
        assert said in text
        assert text.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_an_array_that_belongs_nowhere_is_refused(terrain, data):
    model = onnx.load_from_string(data)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "network.other.weight"))
    with pytest.raises(ModelError, match=r"network\.other\.weight belongs nowhere"):
        terrain.make_pipeline(terrain.read_network(model.SerializeToString()))
    with pytest.raises(ModelError, match=r"no network\.input_blocks"):
        terrain.read_network(onnx.ModelProto().SerializeToString())


def test_heights_are_metres(terrain):
    assert terrain.heights(np.array([0.0, 1.0])).tolist() == pytest.approx([0, terrain.HEIGHT_M])
