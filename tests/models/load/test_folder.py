"""Folders of every kind load to the same model; bad folders give one clear line."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import zipfile

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from safetensors.torch import load_file, save_file

from dq_deploy import models
from dq_deploy.errors import ModelError
from tests.tiny import tiny_config, tiny_denoiser

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def denoiser():
    return tiny_denoiser(classes=3)


@pytest.fixture
def folder(denoiser, tmp_path):
    """A denoiser folder as diffusers writes it."""
    denoiser.module.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def output(module, config):
    inputs = {key: torch.from_numpy(v) for key, v in models.example_inputs(models.default_call(config), 2, 0).items()}
    with torch.no_grad():
        return module(**inputs).sample


def assert_same_model(loaded, denoiser):
    for key, value in denoiser.module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[key], value)
    assert torch.equal(output(loaded.module, loaded.config), output(denoiser.module, denoiser.config))
    assert not loaded.module.training
    assert not any(p.requires_grad for p in loaded.module.parameters())


def test_a_denoiser_folder_loads(folder, denoiser):
    loaded = models.load_model(folder)
    assert_same_model(loaded, denoiser)
    assert loaded.family == "unet2d"
    assert loaded.scheduler_config is None
    assert loaded.source == str(folder)


def test_a_pipeline_folder_loads_with_its_scheduler(denoiser, tmp_path):
    DDPMPipeline(denoiser.module, DDPMScheduler()).save_pretrained(tmp_path)
    loaded = models.load_model(str(tmp_path))
    assert_same_model(loaded, denoiser)
    assert loaded.scheduler_config["_class_name"] == "DDPMScheduler"
    inner = models.load_model(tmp_path / "unet")
    assert inner.scheduler_config == loaded.scheduler_config
    assert inner.source_sha256 == loaded.source_sha256
    (tmp_path / "model_index.json").unlink()
    assert_same_model(models.load_model(tmp_path), denoiser)


def test_safe_and_bin_and_half_files_load(folder, denoiser):
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    for legacy in (False, True):
        torch.save(state, folder / "diffusion_pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
        assert_same_model(models.load_model(folder), denoiser)
    (folder / "diffusion_pytorch_model.bin").unlink()
    half = {key: value.half() for key, value in state.items()}
    save_file(half, folder / "diffusion_pytorch_model.fp16.safetensors")
    for variant in (None, "fp16"):
        loaded = models.load_model(folder, variant=variant)
        for key, value in loaded.module.state_dict().items():
            assert value.dtype == torch.float32
            assert torch.equal(value, half[key].float())


def test_the_hash_follows_weights_and_configuration(folder):
    first = models.load_model(folder).source_sha256
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "norm_eps": 1e-4}))
    second = models.load_model(folder).source_sha256
    state = load_file(folder / WEIGHTS)
    state["conv_in.weight"][0, 0, 0, 0] += 1
    save_file(state, folder / WEIGHTS)
    assert len({first, second, models.load_model(folder).source_sha256}) == 3


def test_names_from_before_diffusers_0_15_are_understood(folder, denoiser):
    state = load_file(folder / WEIGHTS)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    assert any(".proj_attn." in key for key in state)
    save_file(state, folder / WEIGHTS)
    assert_same_model(models.load_model(folder), denoiser)


def test_a_hub_name_is_a_missing_folder_and_nothing_is_asked_of_the_network(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("network used")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(ModelError, match=r"google/ddpm-cifar10-32 does not exist.*never downloaded"):
        models.load_model("google/ddpm-cifar10-32")


def expect(folder, message, **options):
    with pytest.raises(ModelError, match=message) as caught:
        models.load_model(folder, **options)
    assert "\n" not in str(caught.value)


def test_folders_that_are_none_are_named(folder, tmp_path):
    expect(tmp_path / "none", "does not exist")
    expect(folder / "config.json", "is a file")
    expect(tmp_path, r"neither config\.json, model_index\.json nor unet/")
    (tmp_path / "unet").mkdir()
    expect(tmp_path, r"config\.json is missing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100000, "is not JSON"),
        ("[]", "holds a JSON list"),
        ("{}", "names the class None"),
        (json.dumps({**tiny_config(), "_class_name": "AutoencoderKL"}), "is of AutoencoderKL, which does not denoise"),
        (json.dumps(tiny_config(classes=4)), r"class_embedding.weight has shape \(3, 32\), expected \(4, 32\)"),
        (json.dumps(tiny_config(classes=3, layers_per_block=2)), "lacks"),
        (json.dumps(tiny_config()), "has class_embedding.weight, which the configuration does not have"),
        (json.dumps(tiny_config(classes=3, block_out_channels=[2**24, 2**24])), "does not have"),
        (json.dumps(tiny_config(classes=3, sample_size=None)), "sample_size"),
        (json.dumps({**tiny_config(), "_class_name": ["UNet2DModel"]}), r"names the class \['UNet2DModel'\]"),
        (json.dumps(tiny_config(classes=3, down_block_types=5)), "can be built"),
        (json.dumps(tiny_config(classes=3, up_block_types=[["UpBlock2D"]])), "can be built"),
        (json.dumps(tiny_config(classes=3, norm_eps="x")), "cannot run as it is called"),
        (json.dumps(tiny_config(classes=3, freq_shift=[])), "cannot run as it is called"),
        (json.dumps(tiny_config(classes=3, norm_eps=float("nan"))), "norm_eps nan, expected a finite number"),
    ],
)
def test_a_wrong_configuration_is_named(folder, text, message):
    (folder / "config.json").write_text(text)
    expect(folder, message)


def test_a_configuration_of_another_encoding_is_named(folder):
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    expect(folder, "is not JSON")


@pytest.mark.parametrize("name", [WEIGHTS, "diffusion_pytorch_model.bin"])
def test_truncated_weights_are_named(folder, name):
    if name.endswith("bin"):
        torch.save(load_file(folder / WEIGHTS), folder / name)
        (folder / WEIGHTS).unlink()
    data = (folder / name).read_bytes()
    for length in (0, 5, 1000, len(data) - 10):
        (folder / name).write_bytes(data[:length])
        expect(folder, rf"{name}.*(truncated|damaged)")


def test_missing_weights_and_variants_are_named(folder):
    expect(folder, r"no diffusion_pytorch_model\.fp16\.safetensors or \.bin.*there: diffusion", variant="fp16")
    expect(folder, "variant is '../x'", variant="../x")
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    expect(folder, "weight files there: none")
    for variant in ("fp16", "ema"):
        save_file(state, folder / f"diffusion_pytorch_model.{variant}.safetensors")
    expect(folder, "variants ema, fp16 and no plain file; choose one")
    models.load_model(folder, variant="ema")


def test_sharded_weights_are_named(folder):
    shutil.move(folder / WEIGHTS, folder / "diffusion_pytorch_model-00001-of-00002.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text("{}")
    expect(folder, "sharded")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(folder, value):
    state = load_file(folder / WEIGHTS)
    state["conv_out.weight"][0, 0, 0, 0] = value
    save_file(state, folder / WEIGHTS)
    expect(folder, r"conv_out\.weight holds NaN or infinity")


def test_weights_of_another_type_or_name_are_named(folder):
    state = load_file(folder / WEIGHTS)
    save_file({**state, "conv_out.weight": state["conv_out.weight"].long()}, folder / WEIGHTS)
    expect(folder, r"conv_out\.weight is torch\.int64")
    save_file({key: value for key, value in state.items() if key != "conv_in.bias"}, folder / WEIGHTS)
    expect(folder, r"lacks conv_in\.bias")


class Exploding:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return (open, (str(self.witness), "w"))


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_with_code_in_them_are_refused_and_never_run(folder, tmp_path, legacy):
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    witness, path = tmp_path / "ran", folder / "diffusion_pytorch_model.bin"
    state["conv_in.weight"] = Exploding(witness)
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    expect(folder, "nothing was executed")
    path.write_bytes(pickle.dumps(state))
    expect(folder, "nothing was executed|damaged")
    assert not witness.exists()


def test_a_zip_bomb_is_refused_before_it_is_unpacked(folder):
    path = folder / "diffusion_pytorch_model.bin"
    torch.save(load_file(folder / WEIGHTS), path)
    (folder / WEIGHTS).unlink()
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, bytes(100 * 2**20) if name.endswith("data/0") else content)
    expect(folder, "nothing was unpacked")


def test_weights_that_are_no_state_dict_are_named(folder):
    (folder / WEIGHTS).unlink()
    for content in ([1], {"a": 1}, {"model": {"conv_in.weight": torch.ones(1)}}):
        torch.save(content, folder / "diffusion_pytorch_model.bin")
        expect(folder, "not a flat state dict")


def test_a_size_that_the_model_does_not_have_is_refused(folder):
    with pytest.raises(ModelError, match=r"the sizes name 'heigth', which .* expected height, width"):
        models.load_model(folder, sizes={"heigth": 8})
