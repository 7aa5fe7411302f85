from __future__ import annotations

import sys

import numpy as np
import pytest

from dq_deploy.errors import FileProblemError, InputError
from dq_deploy.quality.classifier import load_digit_classifier, recognised_labels


@pytest.fixture(scope="module")
def network(repository):
    return load_digit_classifier(repository / "examples" / "digit-classifier" / "weights.safetensors")


def test_the_shipped_classifier_recognises_held_out_digits(network, repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "examples"))
    from digits import load_digits, split_digits

    images, labels = load_digits()
    _, held_out = split_digits(labels)
    assert len(held_out) == 1000
    accuracy = float((recognised_labels(network, images[held_out]) == labels[held_out]).mean())
    assert accuracy == pytest.approx(0.986, abs=0.001)  # what the example's README says
    sys.modules.pop("digits", None)


def test_a_broken_weights_file_is_one_clear_error(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(FileProblemError, match="digit classifier"):
        load_digit_classifier(path)
    with pytest.raises(FileProblemError, match="digit classifier"):
        load_digit_classifier(tmp_path / "missing.safetensors")


def test_images_of_another_shape_are_refused(network):
    with pytest.raises(InputError, match="32"):
        recognised_labels(network, np.zeros((1, 1, 28, 28), np.float32))
