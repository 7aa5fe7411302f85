"""Weights stay in the map of their file or are converted one by one; what is no float model is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dq_deploy import load_model
from dq_deploy.errors import ModelError
from dq_deploy.models.load import tensor_file
from tests.tiny import ONE_LEVEL, tiny_denoiser

WEIGHTS = "diffusion_pytorch_model.safetensors"
BIN = "diffusion_pytorch_model.bin"


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return tiny_denoiser(**ONE_LEVEL).module.state_dict()


@pytest.fixture
def folder(tmp_path):
    tiny_denoiser(**ONE_LEVEL).module.save_pretrained(tmp_path)
    return tmp_path


def refused(path, message):
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64])
def test_every_float_type_that_torch_reads_becomes_float32(folder, state, kind):
    stored = {key: value.to(kind) for key, value in state.items()}
    save_file(stored, folder / WEIGHTS)
    found = load_model(folder).module.state_dict()
    assert all(torch.equal(found[key], value.to(torch.float32)) for key, value in stored.items())
    assert {value.dtype for value in found.values()} == {torch.float32}


def mapped_files(address):
    """Names of the files whose map holds an address of this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in re.match(r"(\w+)-(\w+)", line).groups())
        if first <= address < last:
            yield line.split()[-1]


@pytest.mark.parametrize("name", [WEIGHTS, BIN])
def test_float32_stays_in_the_map_of_its_file_and_writing_does_not_reach_the_file(folder, state, name):
    if name == BIN:
        torch.save(state, folder / BIN)
        (folder / WEIGHTS).unlink()
    before = (folder / name).read_bytes()
    module = load_model(folder).module
    for value in module.state_dict().values():
        assert list(mapped_files(value.data_ptr())) == [str(folder / name)]
        value.zero_()
    assert (folder / name).read_bytes() == before
    assert torch.equal(load_model(folder).module.state_dict()["conv_in.weight"], state["conv_in.weight"])


def test_a_file_is_let_go_after_every_window(folder, state, monkeypatch):
    save_file({key: value.half() for key, value in state.items()}, folder / WEIGHTS)
    monkeypatch.setattr(tensor_file, "WINDOW", 1000)
    opened = []
    original = tensor_file._opened
    monkeypatch.setattr(tensor_file, "_opened", lambda path: opened.append(path) or original(path))
    module = load_model(folder).module
    assert len(opened) > 5
    assert torch.equal(module.state_dict()["conv_in.weight"], state["conv_in.weight"].half().float())
    assert str(folder) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    ("name", "who"),
    [
        ("conv_in.weight.absmax", "bitsandbytes"),
        ("conv_in.weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("scaled_fp8", "scaled float8"),
        ("conv_in.weight_scale", "scaled float8"),
        ("conv_in.qweight", "GPTQ or AWQ"),
        ("conv_in.weight._data", "optimum-quanto or torchao"),
    ],
)
def test_weights_that_were_quantized_elsewhere_are_refused_by_name(folder, name, who):
    save_file({**load_file(folder / WEIGHTS), name: torch.ones(1)}, folder / WEIGHTS)
    refused(folder, rf"quantized elsewhere \({who}: {name}\); give the float model")


def test_lora_factors_are_no_model(folder):
    save_file({"unet.conv_in.lora_A.weight": torch.ones(1)}, folder / WEIGHTS)
    refused(folder, "holds LoRA factors .*, expected a whole model; fuse them")


def test_a_pointer_of_git_lfs_is_named(folder):
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(folder, r"is a Git LFS pointer, not the weights; run git lfs pull in its folder")


def test_one_tensor_that_is_not_finite_is_named_in_any_place(folder):
    full = load_file(folder / WEIGHTS)
    for value in (float("nan"), float("-inf")):
        full["conv_out.weight"].view(-1)[-1] = value
        save_file(full, folder / WEIGHTS)
        refused(folder, r"conv_out\.weight holds NaN or infinity")
