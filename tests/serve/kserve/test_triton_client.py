"""NVIDIA's own client, unmodified, gets everything it asks for."""

from __future__ import annotations

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.serve.kserve.asking import feeds, labels_body, values_of


def inputs_of(found, *, binary=True):
    made = []
    for name, values in found.items():
        made.append(triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype)))
        made[-1].set_data_from_numpy(values, binary_data=binary)
    return made


def generate_inputs(prompts, seeds, steps=2):
    return inputs_of(
        {
            "PROMPT": np.array([prompt.encode() for prompt in prompts], object),
            "SEED": np.array(seeds, np.int64),
            "STEPS": np.array([steps], np.int32),
        }
    )


def test_it_sees_a_server_that_lives_and_its_models(labels):
    client = labels.triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "dq_deploy"
    index = client.get_model_repository_index()
    assert [(entry["name"], entry["state"]) for entry in index] == [
        ("denoiser", "READY"),
        ("generate", "READY"),
        ("digits", "READY"),
    ]
    assert all(client.is_model_ready(entry["name"], "1") for entry in index)
    assert not client.is_model_ready("another")
    assert not client.is_model_ready("denoiser", "2")


def test_it_reads_what_the_denoiser_takes(labels):
    found = labels.triton.get_model_metadata("denoiser", "1")
    assert found["inputs"] == [
        {"name": "sample", "datatype": "FP32", "shape": [-1, 1, -1, -1]},
        {"name": "timestep", "datatype": "FP32", "shape": [-1]},
        {"name": "class_labels", "datatype": "INT64", "shape": [-1]},
    ]
    config = labels.triton.get_model_config("denoiser", "1")
    assert config["max_batch_size"] == labels.service.limits.max_batch
    assert config["input"][0] == {"name": "sample", "data_type": "TYPE_FP32", "dims": [1, -1, -1]}


def test_it_reads_what_pictures_are_made_from(labels, text):
    found = labels.triton.get_model_metadata("digits")
    assert found["name"] == "digits"
    assert [entry["name"] for entry in found["inputs"]] == ["LABEL", "SEED", "STEPS", "HEIGHT", "WIDTH"]
    assert found["outputs"][0]["shape"][-1] == 1
    config = text.triton.get_model_config("generate")
    needed = [(entry["name"], entry["data_type"]) for entry in config["input"] if not entry.get("optional")]
    assert needed == [("PROMPT", "TYPE_STRING"), ("SEED", "TYPE_INT64")]
    assert {entry["name"] for entry in config["input"] if entry.get("optional")} >= {"GUIDANCE", "NEGATIVE_PROMPT"}
    assert text.triton.get_model_metadata("generate")["outputs"][0]["shape"][-1] == 3


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_the_denoiser_gives_the_bits_of_its_runner(labels, binary_in, binary_out):
    given = feeds(3)
    outputs = [triton.InferRequestedOutput("output", binary_data=binary_out)]
    found = labels.triton.infer("denoiser", inputs_of(given, binary=binary_in), outputs=outputs, request_id="mine")
    own = labels.service.engine.run(given)["output"]
    assert found.get_response()["id"] == "mine"
    assert ("data" in found.get_output("output")) != binary_out
    np.testing.assert_array_equal(found.as_numpy("output"), own)


@pytest.mark.parametrize("there", ["gzip", "deflate", None])
@pytest.mark.parametrize("back", ["gzip", "deflate", None])
def test_compressed_bodies_are_the_same(labels, there, back):
    given = feeds(2, seed=5)
    found = labels.triton.infer(
        "denoiser", inputs_of(given), request_compression_algorithm=there, response_compression_algorithm=back
    )
    np.testing.assert_array_equal(found.as_numpy("output"), labels.service.engine.run(given)["output"])


def test_requests_side_by_side_each_get_their_own(labels):
    given = [feeds(1, seed=seed) for seed in range(12)]
    asked = [labels.triton.async_infer("denoiser", inputs_of(one)) for one in given]
    for one, request in zip(given, asked, strict=True):
        own = labels.service.engine.run(one)["output"]
        np.testing.assert_array_equal(request.get_result().as_numpy("output"), own)


def test_pictures_come_as_raw_pixels(text):
    found = text.triton.infer("generate", generate_inputs(["a cat", "ein Hügel ☀"], [1, 2]), model_version="1")
    assert found.as_numpy("IMAGES").dtype == np.uint8
    assert found.as_numpy("IMAGES").shape == (2, text.service.card.height, text.service.card.width, 3)


def test_an_error_is_read_with_its_status(text):
    with pytest.raises(InferenceServerException, match="LABEL; leave it out") as refused:
        text.triton.infer("generate", inputs_of({"LABEL": np.array([1])}))
    assert refused.value.status() == "400"
    with pytest.raises(InferenceServerException, match="no model 'another'") as refused:
        text.triton.infer("another", inputs_of({"LABEL": np.array([1])}))
    assert refused.value.status() == "404"


def test_statistics_are_of_what_was_asked(labels):
    client = labels.triton
    before = client.get_inference_statistics("generate", "1")["model_stats"][0]
    engine_before = client.get_inference_statistics("denoiser")["model_stats"][0]
    labels.infer("generate", labels_body([1, 2], [3]))
    labels.refusal("generate", labels_body([1, 99], [3]))
    after = client.get_inference_statistics("generate")["model_stats"][0]
    engine_after = client.get_inference_statistics("denoiser")["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 2
    assert after["execution_count"] - before["execution_count"] == 2
    stats, stats_before = after["inference_stats"], before["inference_stats"]
    for name, more in (("success", 1), ("fail", 1), ("queue", 1), ("compute_infer", 1)):
        assert stats[name]["count"] - stats_before[name]["count"] == more
        assert stats[name]["ns"] > stats_before[name]["ns"]
    parts = ("compute_input", "queue", "compute_infer", "compute_output")
    assert sum(stats[name]["ns"] for name in parts) == stats["success"]["ns"]
    samples = engine_after["inference_count"] - engine_before["inference_count"]
    assert samples == 4  # two pictures of two steps
    assert (
        sum(e["batch_size"] * e["compute_infer"]["count"] for e in engine_after["batch_stats"])
        == (engine_after["inference_count"])
    )
    listed = client.get_inference_statistics()["model_stats"]
    assert [entry["name"] for entry in listed] == ["denoiser", "generate"]


def test_json_numbers_are_the_engine_s_bits(labels):
    from tests.serve.kserve.asking import feeds_body

    found = labels.infer("denoiser", feeds_body(2))
    np.testing.assert_array_equal(values_of(found["outputs"][0]), labels.service.engine.run(feeds(2))["output"])


def test_what_triton_has_and_this_server_has_not_is_refused_by_name(labels):
    client = labels.triton
    for ask, words in (
        (lambda: client.register_system_shared_memory("a", "b", 1), "shared memory"),
        (lambda: client.get_cuda_shared_memory_status(), "shared memory"),
        (lambda: client.update_trace_settings("denoiser", {}), "traces"),
        (lambda: client.get_trace_settings(), "traces"),
        (lambda: client.load_model("denoiser"), "not loaded"),
        (lambda: client.unload_model("denoiser"), "not unloaded"),
        (lambda: client.get_log_settings(), "the log"),
    ):
        with pytest.raises(InferenceServerException, match=words) as refused:
            ask()
        assert refused.value.status() == "404"
    with pytest.raises(InferenceServerException, match="sequence"):
        client.infer("denoiser", inputs_of(feeds()), sequence_id=3, sequence_start=True)
    shared = inputs_of(feeds())
    shared[0].set_shared_memory("region", 256)
    with pytest.raises(InferenceServerException, match="shared memory is not served here"):
        client.infer("denoiser", shared)
