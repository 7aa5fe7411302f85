"""The emoji scripts on a package of three drawn pictures, and the shipped emoji model, images and classifier."""

from __future__ import annotations

import sys
import tarfile

import numpy as np
import pytest

from dq_deploy.errors import FileProblemError, InputError


def test_emojis_are_laid_on_white_shrunk_labelled_and_told_apart(script, package):
    emojis = script("emojis.py")
    found = emojis.load_emojis(package)
    assert found.images.shape == (3, 32, 32, 3)
    assert [emojis.CLASSES[label] for label in found.labels] == ["flags", "hands", "hands"]
    assert found.plain.tolist() == [True, True, False]
    assert found.emoji.tolist() == [0, 1, 1]
    assert found.images[0, 5, 3].tolist() == [255, 0, 0]
    assert found.images[0, 5, 28].tolist() == [255, 255, 255]


def test_the_archive_and_its_folder_hold_the_same_emojis(script, package, tmp_path):
    emojis = script("emojis.py")
    archive = tmp_path / "package.tgz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(package, "package")
    packed, unpacked = emojis.load_emojis(archive), emojis.load_emojis(package)
    np.testing.assert_array_equal(packed.images, unpacked.images)
    np.testing.assert_array_equal(packed.labels, unpacked.labels)


@pytest.mark.parametrize("name", ["missing.tgz", "empty", "broken.tgz"])
def test_what_is_no_package_is_named_with_the_command_that_gets_it(script, tmp_path, name, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.tgz").write_bytes(b"no archive")
    emojis = script("emojis.py")
    with pytest.raises(InputError, match="npm pack emoji-datasource-google@"):
        emojis.load_emojis(tmp_path / name)
    with pytest.raises(SystemExit) as stopped:
        emojis.main([str(tmp_path / name)])
    assert str(stopped.value).count("\n") == 0
    assert capsys.readouterr().out == ""


def test_batches_mirror_hands_and_never_flags(script, package):
    emojis = script("emojis.py")
    found = emojis.load_emojis(package)
    images, labels = emojis.draw_batch(found, np.random.default_rng(0), 64)
    assert images.shape == (64, 3, 32, 32)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (-1, 1)
    white_on_the_left = (images[:, :, :, 5] == 1).all(axis=(1, 2))
    assert set(white_on_the_left[labels == emojis.CLASSES.index("hands")]) == {True, False}
    assert not white_on_the_left[labels == emojis.CLASSES.index("flags")].any()


def test_the_reference_has_distinct_plain_emojis_and_refuses_more_than_there_are(script, package, tmp_path):
    emojis = script("emojis.py")
    path = tmp_path / "reference.npz"
    emojis.main([str(package), "--reference", str(path), "--count", "2"])
    with np.load(path) as file:
        assert file["images"].shape == (2, 32, 32, 3)
        assert file["images"].dtype == np.uint8
        assert file["labels"].tolist() == [8, 2]
    with pytest.raises(InputError, match="expected 1 to 2"):
        emojis.write_reference(emojis.load_emojis(package), path, count=3, seed=0)


def test_a_training_goes_on_from_its_checkpoint_and_its_folder_can_be_loaded(script, package, tmp_path):
    from dq_deploy import load_model

    training = script("train_emoji_ddpm.py")
    out = tmp_path / "model"
    arguments = [str(package), "--out", str(out), "--batch", "1", "--no-bfloat16"]
    training.main([*arguments, "--iterations", "1"])
    before = (out / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    training.main([*arguments, "--iterations", "2"])
    assert (out / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() != before
    assert load_model(out).scheduler_config["prediction_type"] == "v_prediction"


def test_the_shipped_emoji_model_loads_and_its_output_is_finite(repository):
    import torch

    from dq_deploy import load_model
    from dq_deploy.models import call_denoiser, example_inputs

    denoiser = load_model(repository / "examples" / "emoji-ddpm-32")
    assert denoiser.config["num_class_embeds"] == 10
    inputs = {name: torch.from_numpy(value) for name, value in example_inputs(denoiser.call, 2, 0).items()}
    with torch.inference_mode():
        output = call_denoiser(denoiser.module, inputs)
    assert output.shape == (2, 3, 32, 32)
    assert bool(torch.isfinite(output).all())


def test_the_shipped_reference_has_a_thousand_distinct_images_of_every_class(repository, script):
    classes = script("emojis.py").CLASSES
    with np.load(repository / "examples" / "emoji-ddpm-32" / "reference.npz") as file:
        images, labels = file["images"], file["labels"]
    assert images.shape == (1000, 32, 32, 3)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 1000
    assert np.bincount(labels, minlength=len(classes)).min() >= 20


def test_the_shipped_classifier_recognises_the_reference(repository, script):
    from dq_deploy.quality.onnx_network import load_onnx_classifier

    # most of them it was trained on; the share of held-out ones is in its README
    examples = repository / "examples"
    classifier = script("emoji_classifier.py")
    with np.load(examples / "emoji-ddpm-32" / "reference.npz") as file:
        images, labels = file["images"], file["labels"]
    network = classifier.load_emoji_classifier(examples / "emoji-classifier" / "weights.safetensors")
    pixels = np.moveaxis(images, -1, 1).astype(np.float32) / 127.5 - 1
    found = classifier.recognised_emoji_labels(network, pixels[:250])
    assert (found == labels[:250]).mean() > 0.8
    by_onnx = load_onnx_classifier(examples / "emoji-classifier" / "classifier.onnx")(pixels[:250])
    np.testing.assert_array_equal(by_onnx, found)


def test_a_broken_classifier_file_and_wrong_images_are_refused(script, tmp_path):
    classifier = script("emoji_classifier.py")
    (tmp_path / "weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(FileProblemError, match=r"emoji-classifier/train\.py"):
        classifier.load_emoji_classifier(tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="expected finite"):
        classifier.recognised_emoji_labels(classifier.build_emoji_classifier(), np.zeros((2, 1, 32, 32)))


def test_the_classifier_script_holds_out_whole_emojis_and_writes_weights(script, package, tmp_path, monkeypatch):
    training = script("emoji-classifier/train.py")
    monkeypatch.setattr(training, "write_onnx", lambda _network, _path: None)  # takes seconds
    emojis = sys.modules["emojis"]
    found = emojis.load_emojis(package)
    found = emojis.Emojis(
        images=np.repeat(found.images, 20, axis=0),
        labels=np.arange(60) % 9,
        emoji=np.arange(60) // 9 * 9 + np.arange(60) % 9,
        tone=np.zeros(60, np.int64),
    )
    kept, held_out = training.split_emojis(found, held_out=0.3)
    assert not set(kept.emoji) & set(held_out.emoji)
    assert set(held_out.labels) == set(range(9))
    path = tmp_path / "weights.safetensors"
    shares = training.train(found, iterations=1, batch=4, seed=0, out=path)
    assert shares.shape == (9,)
    sys.modules["emoji_classifier"].load_emoji_classifier(path)
