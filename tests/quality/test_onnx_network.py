from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dq_deploy.errors import FileProblemError, InputError
from dq_deploy.quality import load_classifier, load_extractor
from tests.quality.images import noisy_pair


@pytest.fixture
def write(tmp_path):
    """Writes a network that takes the mean of each channel, of an input of the given shape."""

    def make(shape, *, name="features", rank=2, kind=TensorProto.FLOAT):
        image = helper.make_tensor_value_info("image", kind, shape)
        found = helper.make_tensor_value_info("vector", kind, [shape[0], shape[1], 1, 1][:rank])
        nodes = [helper.make_node("ReduceMean", ["image", "axes"], ["vector"], keepdims=int(rank == 4))]
        axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
        graph = helper.make_graph(nodes, "means", [image], [found], [axes])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path)
        return path

    return make


def test_an_onnx_file_is_an_extractor_named_after_it(write):
    images, _ = noisy_pair(120, channels=3)
    extractor = load_extractor(f"onnx:{write(['N', 'C', 'H', 'W'], name='my-net')}")
    assert (extractor.frechet_name, extractor.has_maps) == ("FD-onnx-my-net", False)
    np.testing.assert_allclose(extractor.features(images), images.mean((2, 3)), atol=1e-6)


def test_fixed_axes_are_met_by_batching_resizing_and_repeating(write):
    grey, _ = noisy_pair(7)
    extractor = load_extractor(f"onnx:{write([4, 3, 8, 8])}")
    assert extractor.dimension == 3
    found = extractor.features(grey)
    np.testing.assert_allclose(found, np.repeat(grey.mean((2, 3)), 3, axis=1), atol=0.02)
    alone = np.concatenate([extractor.features(grey[i : i + 1]) for i in range(7)])
    np.testing.assert_allclose(found, alone, atol=1e-6)


def test_colour_images_do_not_fit_a_grey_network(write):
    colour, _ = noisy_pair(2, channels=3)
    with pytest.raises(InputError, match="takes 1 channels"):
        load_extractor(f"onnx:{write(['N', 1, 8, 8])}").features(colour)


def test_an_onnx_file_of_logits_is_a_classifier(write):
    images, _ = noisy_pair(120, channels=3)
    recognise = load_classifier(f"onnx:{write(['N', 3, 16, 16])}")
    np.testing.assert_array_equal(recognise(images), images.mean((2, 3)).argmax(1))


def test_files_that_do_not_fit_are_one_clear_error(write, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    wrong = [write([1, 3, 8, 8], name="map", rank=4), write([1, 3, 8, 8], name="double", kind=TensorProto.DOUBLE)]
    for path in (broken, tmp_path / "missing.onnx", *wrong, write([1, 4, 8, 8], name="latent")):
        with pytest.raises(FileProblemError, match="one float32 input") as found:
            load_extractor(f"onnx:{path}")
        assert "\n" not in str(found.value)
