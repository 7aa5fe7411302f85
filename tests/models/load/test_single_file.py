"""A checkpoint in one file, in its authors' names, is the model that diffusers makes of it; nothing is downloaded."""

from __future__ import annotations

import json
import re
import socket

import pytest
import torch
from safetensors.torch import save_file

from dq_deploy import load_model
from dq_deploy.errors import ModelError
from dq_deploy.models.load.single_file import offline

PREFIX = "model.diffusion_model"
IN_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
PLACES = (
    (r"mid_block.resnets.0", "middle_block.0"),
    (r"mid_block.attentions.0", "middle_block.1"),
    (r"mid_block.resnets.1", "middle_block.2"),
    (r"down_blocks.0.resnets.0", "input_blocks.1.0"),
    (r"down_blocks.0.attentions.0", "input_blocks.1.1"),
    (r"down_blocks.0.downsamplers.0.conv", "input_blocks.2.0.op"),
    (r"down_blocks.1.resnets.0", "input_blocks.3.0"),
    (r"up_blocks.0.resnets.(\d)", r"output_blocks.\1.0"),
    (r"up_blocks.0.upsamplers.0.conv", "output_blocks.1.1.conv"),
    (r"up_blocks.1.resnets.0", "output_blocks.2.0"),
    (r"up_blocks.1.resnets.1", "output_blocks.3.0"),
    (r"up_blocks.1.attentions.0", "output_blocks.2.1"),
    (r"up_blocks.1.attentions.1", "output_blocks.3.1"),
)


def original_name(name):
    """Of a UNet of Stable Diffusion with two levels and one layer in each."""
    path, end = name.rsplit(".", 1)
    for ours, theirs in PLACES:
        if re.match(ours + r"\b", path):
            path = re.sub(ours, theirs, path, count=1)
            break
    path = OUTSIDE.get(path, path)
    if ".resnets." in name:
        path = re.sub(r"\w+$", lambda match: IN_RESNET[match[0]], path)
    return f"{PREFIX}.{path}.{end}"


@pytest.fixture(scope="module")
def module():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )


@pytest.fixture
def checkpoint(module):
    """The weights by their authors' names, with another network beside them."""
    state = {original_name(name): value.clone() for name, value in module.state_dict().items()}
    assert len(state) == len(module.state_dict())
    return {**state, "first_stage_model.encoder.conv_in.weight": torch.ones(2, 2)}


@pytest.fixture
def config(module, tmp_path):
    """A pipeline's folder without any weights."""
    from diffusers import EulerDiscreteScheduler

    module.save_config(tmp_path / "like" / "unet")
    EulerDiscreteScheduler().save_pretrained(tmp_path / "like" / "scheduler")
    return tmp_path / "like"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("network used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def assert_is(loaded, module):
    expected = module.state_dict()
    found = loaded.module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["sd.safetensors", "sd.ckpt"])
def test_a_single_file_is_what_diffusers_makes_of_it(checkpoint, config, module, tmp_path, name):
    from diffusers import UNet2DConditionModel

    path = tmp_path / name
    if name.endswith("ckpt"):
        torch.save({"state_dict": checkpoint, "epoch": 3}, path)
    else:
        save_file(checkpoint, path)
    loaded = load_model(path, config=config)
    assert_is(loaded, module)
    assert loaded.scheduler_config["_class_name"] == "EulerDiscreteScheduler"
    assert (loaded.source, loaded.config_source, loaded.component) == (str(path), str(config), "unet")
    theirs = UNet2DConditionModel.from_single_file(
        str(path), config=str(config), subfolder="unet", local_files_only=True, torch_dtype=torch.float32
    )
    assert_is(loaded, theirs)
    assert load_model(path, config=config / "unet").source_sha256 == loaded.source_sha256


def test_a_single_file_may_have_the_names_of_diffusers(config, module, tmp_path):
    save_file(module.state_dict(), tmp_path / "unet.safetensors")
    assert_is(load_model(tmp_path / "unet.safetensors", config=config), module)


def refused(path, message, **options):
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path, **options)
    assert "\n" not in str(caught.value)


def test_a_file_without_a_configuration_says_to_give_one(checkpoint, module, config, tmp_path):
    save_file(checkpoint, tmp_path / "sd.safetensors")
    refused(tmp_path / "sd.safetensors", r"which does not say what model it is; give as `config` a folder")
    module.save_pretrained(tmp_path / "own")
    file = tmp_path / "own" / "diffusion_pytorch_model.safetensors"
    refused(file, rf"is one file of a model; give its folder {tmp_path / 'own'}$")
    refused(config, r"`config` .*like goes with a single file of weights, and .* is none", config=config)


def test_files_that_are_no_checkpoint_of_the_configuration_are_named(checkpoint, config, tmp_path):
    path = tmp_path / "sd.safetensors"
    save_file({"first_stage_model.encoder.conv_in.weight": torch.ones(2, 2)}, path)
    refused(path, "holds no weights of a UNet2DConditionModel; check that `config`", config=config)
    save_file({key: value for key, value in checkpoint.items() if "middle_block.1" not in key}, path)
    refused(path, r"lacks mid_block\.attentions\.0", config=config)
    save_file({f"{PREFIX}.time_embed.0.lora_up.weight": torch.ones(1)}, path)
    refused(path, "holds LoRA factors", config=config)
    path.write_bytes(b"no safetensors")
    refused(path, "truncated or damaged", config=config)
    for name, message in (("a.gguf", "quantized elsewhere"), ("a.onnx", "a graph")):
        (tmp_path / name).touch()
        refused(tmp_path / name, message, config=config)
    (tmp_path / "b.ckpt").symlink_to("gone")
    refused(tmp_path / "b.ckpt", "is a link to gone, which is not there", config=config)


def test_a_conversion_that_fails_is_one_line(checkpoint, config, tmp_path):
    file = config / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "class_embed_type": "timestep"}))
    save_file(checkpoint, tmp_path / "sd.safetensors")
    message = r"not a checkpoint that diffusers can convert to a UNet2DConditionModel \(KeyError: .*check that `config`"
    refused(tmp_path / "sd.safetensors", message, config=config)


def test_a_pickle_with_code_in_it_is_never_run(config, tmp_path):
    class Exploding:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": {"a": torch.ones(1)}, "callbacks": Exploding()}, tmp_path / "sd.ckpt")
    refused(tmp_path / "sd.ckpt", "hold Python objects besides tensors, or are damaged; nothing was", config=config)
    assert not (tmp_path / "ran").exists()


def test_a_class_without_a_conversion_is_named(tmp_path):
    from diffusers import UNet2DModel

    made = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    made.save_config(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    refused(
        tmp_path / "x.safetensors",
        "has other names than UNet2DModel of diffusers, which has no conversion",
        config=tmp_path,
    )


def test_the_hubs_client_is_offline_inside(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with offline():
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()
