"""The captions, the tokenizer and the training of the text-to-image model, on a package of three pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dq_deploy.errors import InputError

pytest.importorskip("transformers", reason="the extra pipelines is not installed")


@pytest.fixture
def captions(script):
    return script("emoji_captions.py")


def test_names_are_plain_words_and_the_skin_tone_follows_a_comma(captions, package):
    found = captions.load_captioned(package)
    assert found.names == {0: ("flag sign", "flag", "flag 2"), 1: ("hand sign", "hand", "hand 2")}
    _, drawn = captions.draw_captioned(found, np.random.default_rng(0), 200)
    assert {"flag", "hand 2, light skin tone", "hands", "hand sign, light skin tone, hands"} <= set(drawn)
    assert found.prompts(captions.CLASSES.index("hands")) == ["hand sign"]


def test_a_caption_belongs_to_its_image(captions, package):
    found = captions.load_captioned(package)
    chosen, drawn = captions.draw_captioned(found, np.random.default_rng(0), 200)
    for index, text in zip(chosen, drawn, strict=True):
        assert ("hand" in text) == (found.emojis.labels[index] == captions.CLASSES.index("hands"))
        assert "light skin tone" in text or found.emojis.tone[index] == 0 or text == "hands"


def test_any_text_is_written_in_the_tokens_and_known_words_in_one(captions, package):
    tokenizer = captions.build_tokenizer(captions.load_captioned(package))
    assert tokenizer.tokenize("Flag, hands") == ["flag</w>", ",</w>", "hands</w>"]
    ids = tokenizer("fjord \u732b", padding="max_length", max_length=captions.TOKENS).input_ids
    assert len(ids) == captions.TOKENS
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "fjord \u732b"
    assert ids[-1] == len(tokenizer) - 1


def test_the_tokenizer_is_written_in_the_two_files_of_clip(captions, package, tmp_path):
    tokenizer = captions.build_tokenizer(captions.load_captioned(package))
    captions.write_tokenizer_files(tokenizer, tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    merges = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert len(vocabulary) == len(tokenizer)
    assert merges[0] == "#version: 0.2"
    assert all("".join(line.split(" ")) in vocabulary for line in merges[1:])


def test_a_training_goes_on_and_its_folder_draws_a_prompt(script, package, tmp_path):
    from diffusers import StableDiffusionPipeline

    training = script("train_emoji_text.py")
    common = [str(package), "--out", str(tmp_path), "--batch", "2", "--class-iterations", "1"]
    training.main([*common, "--iterations", "1"])
    before = (tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    training.main([*common, "--iterations", "2"])
    assert (tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() != before
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("flag", num_inference_steps=1, output_type="np").images[0].shape == (32, 32, 3)


def test_the_training_begins_with_the_class_conditional_model(script, repository):
    import torch
    from diffusers import UNet2DModel

    network, classes = script("train_emoji_text.py").build_denoiser(repository / "examples" / "emoji-ddpm-32")
    known = UNet2DModel.from_pretrained(repository / "examples" / "emoji-ddpm-32" / "unet")
    for attention in known.mid_block.attentions:  # cross-attention stands in their place, and begins at zero
        torch.nn.init.zeros_(attention.to_out[0].weight)
        torch.nn.init.zeros_(attention.to_out[0].bias)
    labels = torch.tensor([3, 9])
    network.add_embedding.forward = lambda _text: classes[labels]
    sample, timestep = torch.randn(2, 3, 32, 32), torch.tensor([10, 900])
    with torch.inference_mode():
        found = network(sample, timestep, torch.zeros(2, 4, 128)).sample
        torch.testing.assert_close(found, known(sample, timestep, labels).sample, atol=1e-5, rtol=0)


def test_the_autoencoder_gives_back_what_it_gets(script):
    import torch

    network = script("identity_autoencoder.py").build_identity_autoencoder(8)
    pixels = torch.rand(3, 3, 8, 8) * 2 - 1
    pixels[0], pixels[1] = 1, -1
    with torch.inference_mode():
        latents = network.encode(pixels).latent_dist.sample()
        assert float((latents - pixels).abs().max()) < 1e-4
        assert float((network.decode(pixels).sample - pixels).abs().max()) < 1e-4


def test_too_few_names_for_the_prompts_of_a_measurement_are_refused(captions, package, tmp_path):
    with pytest.raises(InputError, match="faces has 0 names, expected 2 for 10 prompts"):
        captions.write_prompts(captions.load_captioned(package), tmp_path / "out", count=10)
    assert not (tmp_path / "out").exists()


def test_the_shipped_prompts_are_distinct_and_calibration_shares_none(repository):
    folder = repository / "examples" / "emoji-text-to-image"
    prompts, calibration = (
        (folder / name).read_text(encoding="utf-8").splitlines() for name in ("prompts.txt", "calibration.txt")
    )
    assert len(set(prompts)) == len(prompts) == 500
    assert len(calibration) == 64
    assert not set(prompts) & set(calibration)


def test_the_shipped_model_draws_a_prompt_in_integers_close_to_float(repository, tmp_path):

    from tests.cli.running import command

    model, ckpt, numbers = repository / "examples" / "emoji-text-to-image", tmp_path / "m.pt", tmp_path / "numbers.json"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("pizza\nred heart\n")
    drawn = ("--model", model, "--guidance", "3", "--steps", "2")
    made = command(
        "quantize",
        *drawn,
        "--prompts",
        prompts,
        "--method",
        "minmax",
        "--weights",
        "8",
        "--activations",
        "8",
        "--out",
        ckpt,
    )
    assert made.code == 0, made.err
    done = command(
        "sample",
        *drawn,
        "--ckpt",
        ckpt,
        "--prompt",
        "pizza",
        "--compare",
        "--out",
        tmp_path / "a.png",
        "--json",
        numbers,
    )
    assert done.code == 0, done.err
    assert json.loads(numbers.read_text())["mean_psnr_db"] > 25
