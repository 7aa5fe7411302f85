"""A picture as a tensor is that of the images API, whoever asks with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.serve.kserve.asking import labels_body, png, tensor, text_body, values_of
from tests.serve.live import send


def images(server, model, body):
    found = server.infer(model, body)
    assert [output["name"] for output in found["outputs"]] == ["IMAGES"]
    return values_of(found["outputs"][0], np.uint8)


def alone(server, **asked):
    return png(send(server.port, "POST", "/v1/images/generations", asked)[2])


def test_each_picture_is_the_one_of_its_own_label_and_seed(labels):
    found = images(labels, "generate", labels_body([3, 4, 3], [5, 6, 2**32 - 1]))
    for pixels, label, seed in zip(found, (3, 4, 3), (5, 6, 2**32 - 1), strict=True):
        np.testing.assert_array_equal(pixels, alone(labels, prompt=str(label), seed=seed, steps=2))


def test_one_seed_is_for_all(labels):
    found = images(labels, "digits", labels_body([7, 7], [5]))
    np.testing.assert_array_equal(found[0], found[1])


def test_a_size_is_height_by_width(labels):
    body = labels_body([1], [1])
    body["inputs"] += [tensor("HEIGHT", "INT32", [8]), tensor("WIDTH", "INT32", [16])]
    found = images(labels, "generate", body)
    assert found.shape == (1, 8, 16, 1)
    np.testing.assert_array_equal(found[0], alone(labels, prompt="1", seed=1, steps=2, size="16x8"))


def test_a_prompt_with_all_settings_gives_the_picture_of_the_images_api(text):
    settings = [tensor("GUIDANCE", "FP32", [0.1]), tensor("NEGATIVE_PROMPT", "BYTES", ["rain"])]
    settings[0]["data"] = [2.7]
    found = images(text, "generate", text_body(["a ☀", "a cat"], [8, 9], *settings))
    for pixels, prompt, seed in zip(found, ("a ☀", "a cat"), (8, 9), strict=True):
        asked = {"guidance": 2.7, "negative_prompt": "rain", "steps": 2}
        np.testing.assert_array_equal(pixels, alone(text, prompt=prompt, seed=seed, **asked))


def test_the_steps_are_the_model_s_own_where_none_are_asked_for(labels):
    body = labels_body([1], [1])
    del body["inputs"][2]
    np.testing.assert_array_equal(images(labels, "generate", body)[0], alone(labels, prompt="1", seed=1))


def test_warnings_of_the_pipeline_come_as_a_parameter(text, monkeypatch):
    paint = text.service.painter.paint
    monkeypatch.setattr(
        text.service.painter, "paint", lambda order, index: replace(paint(order, index), remarks=("too long", "cut"))
    )
    found = text.infer("generate", text_body(["a", "b"], [1]))
    assert found["parameters"] == {"warnings": "too long; cut"}
