"""A pipeline's denoiser is what its model_index.json names; two are an error that names both; no code is run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from dq_deploy import load_model
from dq_deploy.errors import ModelError
from dq_deploy.models.load.pipeline_folder import find_denoiser, scheduler_of, sizes_of_picture
from tests.tiny import ONE_LEVEL, tiny_denoiser


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("denoiser")
    tiny_denoiser(**ONE_LEVEL).module.save_pretrained(folder)
    return folder


UNET = ["diffusers", "UNet2DModel"]


@pytest.fixture
def pipeline(made, tmp_path):
    """Write a pipeline of these entries into `pipe`; the ones of the tiny denoiser's class get its files."""

    def write(_class_name="DDPMPipeline", **entries):
        folder = tmp_path / "pipe"
        folder.mkdir()
        for name, entry in entries.items():
            if entry == UNET:
                shutil.copytree(made, folder / name)
        index = {"_class_name": _class_name, "_diffusers_version": "0.42.1", **entries}
        (folder / "model_index.json").write_text(json.dumps(index))
        return folder

    return write


def refused(path, message, **options):
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["unet", "transformer", "prior", "decoder", "anything"])
def test_the_denoiser_is_found_by_its_class_and_not_by_its_name(pipeline, name):
    folder = pipeline(
        **{name: UNET},
        scheduler=["diffusers", "DDPMScheduler"],
        vae=["diffusers", "AutoencoderKL"],
        text_encoder=["transformers", "CLIPTextModel"],
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        controlnet=["diffusers", "ControlNetModel"],
        image_encoder=[None, None],
        requires_safety_checker=False,
    )
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    for loaded in (load_model(folder), load_model(folder / name)):
        assert loaded.scheduler_config == {"_class_name": "DDPMScheduler"}
    assert load_model(folder).component == name


def test_two_denoisers_are_named_and_one_is_chosen(pipeline):
    folder = pipeline(transformer=UNET, transformer_2=UNET, vae=["diffusers", "AutoencoderKLWan"])
    refused(folder, r"has 2 denoisers, transformer, transformer_2; say which one is meant with `component`")
    chosen = load_model(folder, component="transformer_2")
    assert (chosen.component, chosen.source) == ("transformer_2", str(folder))
    refused(folder, "'unet', which is not there .*: its denoisers are transformer, transformer_2", component="unet")
    refused(folder, "'../x', which is not there", component="../x")
    refused(folder / "transformer", "`component` is 'transformer', but .* one model", component="transformer")


def test_a_part_that_does_not_denoise_is_none_to_choose(pipeline):
    folder = pipeline(unet=UNET, vae=["diffusers", "AutoencoderKL"])
    (folder / "vae").mkdir()
    refused(folder, "'vae', which does not denoise .*: its denoisers are unet", component="vae")
    shutil.rmtree(folder)
    folder = pipeline(vae=["diffusers", "AutoencoderKL"], controlnet=["diffusers", "ControlNetModel"])
    refused(folder, "names no denoiser .* `component` may name its controlnet")
    assert find_denoiser(folder, "controlnet").folder == folder / "controlnet"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (["my_unet", "MyUNet"], "comes with its own code, which is never run"),
        (["diffusers", "OnnxRuntimeModel"], "names unet 'OnnxRuntimeModel' .* is an ONNX graph"),
        (["diffusers", "FlaxUNet2DConditionModel"], "'FlaxUNet2DConditionModel' .* class that diffusers .* not have"),
        (["optimum.intel", "OVModelUnet"], "'OVModelUnet' of 'optimum.intel', which is a class that diffusers"),
    ],
)
def test_a_denoiser_of_another_kind_is_named(pipeline, entry, message):
    folder = pipeline(unet=entry)
    (folder / "unet").mkdir()
    if entry[0] == "my_unet":
        (folder / "unet" / "my_unet.py").write_text("raise SystemExit('was run')")
    refused(folder, message)


@pytest.mark.parametrize("name", [["pipeline", "MyPipeline"], "MyPipeline"])
def test_a_custom_pipeline_is_refused_and_its_denoiser_folder_loads(pipeline, name):
    folder = pipeline(name, unet=UNET)
    (folder / "pipeline.py").write_text("raise SystemExit('was run')")
    refused(folder, r"names the pipeline 'MyPipeline', .* code lies beside it \(pipeline\.py\); .* never run: give")
    assert load_model(folder / "unet").component is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["CLIPTextModel"], "model_type": "clip"}, "'CLIPTextModel', a model of transformers"),
        ({"_class_name": "AutoencoderKL"}, "AutoencoderKL, which does not denoise"),
        ({"_class_name": "MyUNet"}, r"'MyUNet', which diffusers \d.* does not have"),
        ({"_class_name": "FlaxUNet2DConditionModel"}, "diffusers has no Flax models any more"),
        ({"_class_name": "UNet2DModel", "auto_map": {"AutoModel": "a.B"}}, "such code is never run"),
        ({"_class_name": ["unet", "MyUNet"]}, "such code is never run"),
        (
            {"_class_name": "UNet2DModel", "quantization_config": {"quant_method": "bitsandbytes"}},
            r"quantized elsewhere \(bitsandbytes\); give the float model",
        ),
    ],
)
def test_a_folder_of_another_model_says_what_it_is(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scheduler_config.json", "folder of a scheduler"),
        ("tokenizer_config.json", "folder of a tokenizer"),
        ("pytorch_lora_weights.safetensors", "folder of LoRA factors"),
        ("sd15.safetensors", r"for sd15\.safetensors give that file, and as `config`"),
    ],
)
def test_a_folder_without_a_model_says_what_it_is(tmp_path, name, message):
    (tmp_path / name).write_text("{}")
    refused(tmp_path, message)


def test_a_training_folder_without_an_index_names_both(made, tmp_path):
    for name in ("unet", "unet_ema"):
        shutil.copytree(made, tmp_path / name)
    config = tmp_path / "unet_ema" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "decay": 0.9999, "optimization_step": 5}))
    refused(tmp_path, "2 denoisers, unet, unet_ema")
    assert "decay" not in load_model(tmp_path, component="unet_ema").config


def test_each_denoiser_has_its_own_scheduler():
    unclip = {"prior_scheduler": [], "decoder_scheduler": [], "super_res_scheduler": [], "image_noising_scheduler": []}
    names = ("prior", "decoder", "super_res_first", "super_res_last", "unet")
    found = [scheduler_of(name, unclip).removesuffix("scheduler") for name in names]
    assert found == ["prior_", "decoder_", "super_res_", "super_res_", ""]


def hub_folder(made, base, *hashes):
    """A model of the hub's cache: links into a folder of blobs."""
    folder = base / "models--who--what"
    for name in hashes:
        for path in made.iterdir():
            blob = folder / "blobs" / path.name
            blob.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, blob)
            link = folder / "snapshots" / name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path("../../blobs") / path.name)
    return folder


def test_a_folder_of_the_hubs_cache_is_its_snapshot(made, tmp_path, monkeypatch):
    folder = hub_folder(made, tmp_path, "aaa")
    hashes = {load_model(name).source_sha256 for name in (made, folder, folder / "snapshots", folder / "snapshots/aaa")}
    assert len(hashes) == 1
    monkeypatch.chdir(folder)
    assert load_model(".").source_sha256 in hashes
    hub_folder(made, tmp_path, "bbb")
    refused(folder, "holds the snapshots aaa, bbb and no refs/main")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("bbb\n")
    assert load_model(folder).source == str(folder)
    (folder / "blobs" / "config.json").unlink()
    refused(folder, r"bbb/config\.json is a link to \.\./\.\./blobs/config\.json, which is not there")


def test_a_dangling_link_of_weights_is_named(made, tmp_path):
    folder = hub_folder(made, tmp_path, "aaa")
    (folder / "blobs" / "diffusion_pytorch_model.safetensors").unlink()
    refused(folder, r"model\.safetensors is a link to .*, which is not there; download or copy the file again")
    shutil.rmtree(folder / "snapshots")
    refused(folder, "without a snapshot")


def test_a_component_without_a_size_has_that_of_its_neighbour_or_a_given_one(made, tmp_path, pipeline):
    folder = pipeline(unet=UNET, transformer=UNET)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": None}))
    assert load_model(folder, component="transformer").call.sizes["height"] == 8
    refused(folder / "transformer", "config.json has no sample_size; give `height` and `width`")
    given = load_model(folder / "transformer", sizes={"height": 6, "width": 4}).call
    assert (given.sizes["height"], given.sizes["width"]) == (6, 4)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(made, tmp_path):
    shutil.copytree(made, tmp_path / "model")
    for name in ("diffusion_pytorch_model.safetensors", "config.json"):
        (tmp_path / "model" / name).chmod(0)
        refused(tmp_path / "model", rf"cannot read .*{name}: Permission denied")


def test_a_pictures_size_in_pixels_is_the_samples_by_the_pipelines_autoencoder(pipeline):
    folder = pipeline(unet=UNET, vae=["diffusers", "AutoencoderKL"])
    assert sizes_of_picture(folder, 64, 32) == {"height": 64, "width": 32}
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [8, 8, 8]}))
    assert sizes_of_picture(folder, 64, 32) == {"height": 16, "width": 8}
    assert sizes_of_picture(folder / "unet", 64, 32) == {"height": 64, "width": 32}
    (folder / "model_index.json").unlink()
    assert sizes_of_picture(folder, 64, 32) == {"height": 64, "width": 32}
    assert sizes_of_picture(folder, None, None) == {}


@pytest.mark.parametrize(
    ("config", "pixels"),
    [
        ({"encoder_block_out_channels": [8] * 6, "decoder_block_out_channels": [8] * 6}, 32),  # Sana
        ({"temperal_downsample": [False, True, True]}, 8),  # Qwen-Image
        ({"temperal_downsample": [False, True], "scale_factor_spatial": 16}, 16),  # Wan
        ({"block_out_channels": [8] * 4, "spatial_compression_ratio": 32}, 32),  # LTX-Video
    ],
)
def test_each_kind_of_autoencoder_says_its_pixels_its_own_way(pipeline, config, pixels):
    folder = pipeline(unet=UNET, vae=["diffusers", "AutoencoderDC"])
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    assert sizes_of_picture(folder, 256, 128) == {"height": 256 // pixels, "width": 128 // pixels}


def test_an_autoencoder_that_does_not_say_its_pixels_is_refused_where_a_size_is_asked_for(pipeline):
    folder = pipeline(unet=UNET, vae=["diffusers", "AutoencoderOobleck"])
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text("{}")
    assert sizes_of_picture(folder, None, None) == {}
    with pytest.raises(ModelError, match="does not say how many pixels a position of the sample has"):
        sizes_of_picture(folder, 64, 32)
