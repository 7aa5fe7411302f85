"""A pipeline's folder is opened from disk alone, and what is missing or would run code is said in one line."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

from dq_deploy.errors import DqError, ModelError, OptionError
from dq_deploy.models.pipeline import PipelineCall, build_scheduler, denoiser_name, open_pipeline, scheduler_name
from dq_deploy.pipelines.draw import draw_images
from tests.pipelines.tiny_pipelines import tiny_projecting_encoder, tiny_text_pipeline, tiny_tokenizer
from tests.pipelines.tiny_transformers import sd3
from tests.tiny import SCHEDULER, tiny_conditional_denoiser


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline") / "sd"
    tiny_text_pipeline().save_pretrained(path)
    return path


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "sd")


def changed_index(folder, **changes):
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_given_denoiser_stands_in_place_of_one_that_is_not_loaded(folder):
    for weights in (folder / "unet").glob("*.safetensors"):
        weights.unlink()
    module = tiny_conditional_denoiser().module
    pipeline = open_pipeline(folder, denoiser=module, scheduler="euler")
    assert pipeline.unet is module
    assert denoiser_name(pipeline) == "unet"
    assert type(pipeline.scheduler).__name__ == "EulerDiscreteScheduler"
    assert type(open_pipeline(folder, denoiser=module).scheduler).__name__ == "PNDMScheduler"
    with pytest.raises(ModelError, match="weight files there: none"):
        open_pipeline(folder)


def test_each_denoiser_has_the_scheduler_of_its_own_name():
    prior, unet = object(), object()
    parts = {"prior_prior": prior, "prior_scheduler": "DDPM", "unet": unet, "scheduler": "DDIM"}
    combined = SimpleNamespace(components=parts, **parts)
    assert scheduler_name(combined, prior) == "prior_scheduler"
    assert scheduler_name(combined, unet) == "scheduler"
    assert scheduler_name(SimpleNamespace(components={"unet": unet}), unet) is None


def test_a_picture_or_a_mask_opens_the_class_of_diffusers_that_takes_it(original, tmp_path):
    module = tiny_conditional_denoiser().module
    for asked, name in (
        (PipelineCall(image=tmp_path / "x.png"), "StableDiffusionImg2ImgPipeline"),
        (PipelineCall(image=tmp_path / "x.png", mask=tmp_path / "y.png"), "StableDiffusionInpaintPipeline"),
        (PipelineCall(), "StableDiffusionPipeline"),
    ):
        pipeline = open_pipeline(original, denoiser=module, asked=asked)
        assert type(pipeline).__name__ == name
        assert pipeline.unet is module


def test_a_text_encoder_that_the_index_leaves_out_is_left_out(tmp_path):
    pipeline, _ = sd3()
    reader = tiny_projecting_encoder(4, projected=4)
    pipeline.register_modules(text_encoder=reader, tokenizer=tiny_tokenizer())
    pipeline.register_modules(text_encoder_2=reader, tokenizer_2=tiny_tokenizer())
    pipeline.save_pretrained(tmp_path / "without-t5")
    opened = open_pipeline(tmp_path / "without-t5")
    assert (opened.text_encoder_3, opened.tokenizer_3) == (None, None)
    call = PipelineCall(prompts=["a cat"], steps=1, height=16, width=16)
    assert np.isfinite(draw_images(opened, call).images).all()
    pipeline.register_modules(text_encoder_2=None, tokenizer_2=None)
    pipeline.save_pretrained(tmp_path / "without-clip")
    with pytest.raises(DqError, match="it has no text_encoder_2, text_encoder_3, tokenizer_2, tokenizer_3, which"):
        draw_images(open_pipeline(tmp_path / "without-clip"), call)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": ["pipeline", "MyPipeline"]}, "names the pipeline 'MyPipeline', which diffusers"),
        ({"_class_name": "NoSuchPipeline"}, "names the pipeline 'NoSuchPipeline', which diffusers"),
        ({"vae": ["my_code", "MyVae"]}, "expected a class of diffusers or transformers: no other code is run"),
        ({"unet_2": ["diffusers", "UNet2DConditionModel"]}, "has 2 denoisers, unet, unet_2"),
        ({"vae": [None, None]}, "has no vae, expected the one that a StableDiffusionPipeline works with"),
        ({"text_encoder": [None, None]}, "has no text_encoder, expected the one"),
        ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, "but the folder text_encoder_2/ is missing"),
        ({"scheduler": ["diffusers", "NoSuchScheduler"]}, "give both one class"),
    ],
)
def test_a_folder_that_cannot_be_opened_says_why(changes, message, folder):
    (folder / "pipeline.py").write_text("raise SystemExit('code of the folder was run')")
    if "_class_name" not in changes:
        (folder / "pipeline.py").unlink()
    changed_index(folder, **changes)
    with pytest.raises(DqError) as refused:
        open_pipeline(folder)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_damaged_components_are_one_line(folder):
    (folder / "text_encoder" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be loaded") as refused:
        open_pipeline(folder)
    assert "\n" not in str(refused.value)


def without_one(name, state):
    return {key: value for key, value in state.items() if key != name}


def with_lora(name, state):
    stem = name.removesuffix(".weight")
    factors = {f"{stem}.lora_A.default.weight": torch.ones(2, 2), f"{stem}.base_layer.weight": state[name]}
    return without_one(name, state) | factors


PARTS = {
    "text_encoder/model.safetensors": "encoder.layers.0.self_attn.q_proj.weight",
    "vae/diffusion_pytorch_model.safetensors": "decoder.conv_in.weight",
}
DAMAGES = {
    "left out": (without_one, r"lacks \S*{name}, which a \w+ has"),
    "LoRA": (with_lora, "holds LoRA factors"),
    "8 bits": (lambda name, state: state | {name: state[name].to(torch.int8)}, "{name} in 8 bits, expected float"),
    "shape": (lambda name, state: state | {name: state[name].repeat_interleave(2, 0)}, "{name} has shape .*, expected"),
    "NaN": (lambda name, state: state | {name: state[name] * float("nan")}, "{name} holds NaN or infinity"),
}


@pytest.mark.parametrize("file", PARTS, ids=lambda file: file.split("/")[0])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_part_that_is_not_whole_is_refused_and_not_filled_with_random_numbers(file, damage, folder):
    change, message = DAMAGES[damage]
    save_file(change(PARTS[file], load_file(folder / file)), folder / file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=message.format(name=PARTS[file])) as refused:
        open_pipeline(folder, denoiser=torch.nn.Identity())
    assert str(folder / file.split("/")[0]) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("part", ["text_encoder", "vae", "unet"])
def test_an_adapter_beside_the_weights_is_refused(part, folder):
    """With peft installed transformers would load it, without would not."""
    (folder / part / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=f"{part} holds an adapter .* fuse it with diffusers"):
        open_pipeline(folder)


@pytest.mark.parametrize("file", ["vae/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json"])
@pytest.mark.parametrize(("text", "message"), [("[]", "holds a JSON list"), ("null", "holds a JSON"), ("{", "no|not")])
def test_a_configuration_of_a_component_that_is_none_is_named(file, text, message, folder):
    (folder / file).write_text(text)
    with pytest.raises(ModelError, match=rf"{file} ({message})|{file} is"):
        open_pipeline(folder)


def test_a_tokenizer_without_its_words_is_refused(folder):
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    with pytest.raises(
        ModelError, match=r"has no tokenizer\.json nor vocab\.json with merges\.txt, expected the words"
    ):
        open_pipeline(folder)


def test_a_folder_without_a_scheduler_says_what_to_give(folder):
    shutil.rmtree(folder / "scheduler")
    with pytest.raises(ModelError, match=r"names PNDMScheduler, but .*scheduler_config\.json is missing"):
        open_pipeline(folder)
    bare = folder / "unet"
    (folder / "model_index.json").unlink()
    with pytest.raises(ModelError, match="copy it, or give `scheduler`"):
        open_pipeline(bare)
    assert type(open_pipeline(bare, scheduler="heun").scheduler).__name__ == "HeunDiscreteScheduler"


def test_a_scheduler_is_of_the_class_it_names_with_that_classes_defaults():
    plain = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "skip_prk_steps": True}
    assert build_scheduler(plain, "ddim").config.clip_sample is False
    assert build_scheduler({"_class_name": "DDIMScheduler"}).config.clip_sample is True
    assert build_scheduler(plain, "dpm++sde").config.algorithm_type == "sde-dpmsolver++"
    assert build_scheduler(SCHEDULER, "LCMScheduler").config.beta_schedule == "squaredcos_cap_v2"
    with pytest.raises(ModelError, match="the scheduler is a NoSuch, which diffusers"):
        build_scheduler({"_class_name": "NoSuch"})
    with pytest.raises(ModelError, match="has no _class_name"):
        build_scheduler({"num_train_timesteps": 10})
    assert type(build_scheduler({"_class_name": "NoSuch"}, "euler")).__name__ == "EulerDiscreteScheduler"
    with pytest.raises(OptionError, match="is for flow matching, the model's PNDMScheduler for noise levels by betas"):
        build_scheduler(plain, "FlowMatchEulerDiscreteScheduler")
    with pytest.raises(OptionError, match="RePaintScheduler asks for original_image, mask at each step"):
        build_scheduler(plain, "RePaintScheduler")
    with pytest.raises(OptionError, match="DDIMInverseScheduler leads from a picture to noise"):
        build_scheduler(plain, "DDIMInverseScheduler")
    with pytest.raises(OptionError, match="'nope', which diffusers does not have"):
        build_scheduler(plain, "nope")
