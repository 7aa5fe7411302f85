"""Weights in shards, as save_pretrained writes them, are the same model; a wrong index is one line."""

from __future__ import annotations

import json

import pytest
import torch

from dq_deploy import load_model
from dq_deploy.errors import ModelError
from tests.tiny import ONE_LEVEL, tiny_denoiser

INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture(scope="module")
def denoiser():
    return tiny_denoiser(**ONE_LEVEL)


@pytest.fixture
def folder(denoiser, tmp_path):
    denoiser.module.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 1
    return tmp_path


def edited(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def refused(folder, message):
    with pytest.raises(ModelError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("safe", [True, False])
def test_shards_are_one_model(denoiser, tmp_path, variant, safe):
    denoiser.module.save_pretrained(tmp_path, max_shard_size="10KB", variant=variant, safe_serialization=safe)
    loaded = load_model(tmp_path, variant=variant)
    for key, value in denoiser.module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[key], value)
    first = loaded.source_sha256
    shard = max(tmp_path.glob("*-of-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    assert not safe or load_model(tmp_path, variant=variant).source_sha256 != first


def test_a_missing_shard_is_named(folder):
    gone = min(folder.glob("*-of-*"))
    gone.unlink()
    refused(folder, rf"lack {gone.name} of \d+ files; copy them beside it")


def test_an_index_that_lists_other_tensors_is_refused(folder):
    edited(folder, lambda table: table.pop("conv_in.bias"))
    refused(folder, "conv_in.bias; copy both again")


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "", "..", "a/b.safetensors"])
def test_an_index_names_no_file_elsewhere(folder, name):
    edited(folder, lambda table: table.update({"conv_in.bias": name}))
    refused(folder, "expected a file of the same folder")


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_refused(folder, text):
    (folder / INDEX).write_text(text)
    refused(folder, "index of sharded weights")


@pytest.mark.parametrize("spelling", ["{stem}.safetensors.index.fp16.json", "{stem}.fp16.safetensors.index.json"])
def test_the_only_variant_may_be_in_shards_by_both_spellings_of_its_index(denoiser, tmp_path, spelling):
    denoiser.module.save_pretrained(tmp_path, max_shard_size="10KB", variant="fp16")
    index = next(tmp_path.glob("*.index*"))
    index.rename(tmp_path / spelling.format(stem="diffusion_pytorch_model"))
    expected = denoiser.module.state_dict()["conv_in.weight"]
    for variant in (None, "fp16"):
        assert torch.equal(load_model(tmp_path, variant=variant).module.state_dict()["conv_in.weight"], expected)
    (tmp_path / "diffusion_pytorch_model.ema.bin").touch()
    refused(tmp_path, "variants ema, fp16 and no plain file; choose one")


def test_shards_without_their_index_are_named(folder):
    (folder / INDEX).unlink()
    refused(folder, r"sharded weights \(.*\) without their index .*index\.json; copy it")


def test_a_shard_that_is_a_dangling_link_is_named(folder):
    shard = min(folder.glob("*-of-*"))
    shard.unlink()
    shard.symlink_to("../blobs/gone")
    refused(folder, rf"{shard.name} is a link to \.\./blobs/gone, which is not there")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("diffusion_flax_model.msgpack", "of Flax"),
        ("model.onnx", "an ONNX graph"),
        ("unet-Q4_K.gguf", "a GGUF file, quantized elsewhere"),
        ("model.safetensors", "of a transformers model"),
    ],
)
def test_weights_of_another_kind_are_named(denoiser, tmp_path, name, message):
    denoiser.module.save_config(tmp_path)
    (tmp_path / name).touch()
    refused(tmp_path, rf"there: none; {name} is {message}: give the float model")
