"""The captions, the tokenizer and the two trainings of the text-to-image model, on a package of three pictures."""

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


def test_both_trainings_go_on_and_the_folder_draws_a_prompt(script, package, tmp_path):
    from diffusers import StableDiffusionPipeline

    common = [str(package), "--out", str(tmp_path), "--batch", "2"]
    with pytest.raises(SystemExit, match="vae is missing"):
        script("train_emoji_text.py").main([*common, "--iterations", "1"])
    script("train_emoji_autoencoder.py").main([*common, "--iterations", "1"])
    for iterations in ("1", "2"):
        script("train_emoji_text.py").main([*common, "--iterations", iterations])
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert {str(part.dtype) for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {"torch.float32"}
    image = pipe("flag", num_inference_steps=1, output_type="np").images[0]
    assert image.shape == (32, 32, 3)


def test_latents_have_mean_zero_and_deviation_one_after_the_fold(script, package):
    import torch

    training = script("train_emoji_autoencoder.py")
    torch.manual_seed(0)
    network = training.build_autoencoder().eval()
    images = training.load_emojis(package).images
    before = network(training.as_network_input(images)).sample
    training.fold_normalization(network, images)
    latents = training.latents_of(network, images)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(training.LATENT_CHANNELS), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(training.LATENT_CHANNELS), atol=1e-4, rtol=0)
    torch.testing.assert_close(network(training.as_network_input(images)).sample, before, atol=1e-4, rtol=0)


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
