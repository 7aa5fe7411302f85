"""What is served under which name, and what each model takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.serve.kserve.asking import body, labels_body, tensor, values_of
from tests.serve.kserve.conftest import serving
from tests.serve.live import send


@pytest.fixture(scope="module")
def plain(made_once):
    """Draws from nothing but a seed."""

    def make(path):
        from dq_deploy import save_record
        from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

        save_record(random_record(tiny_denoiser(**ONE_LEVEL), weight_bits=8), path)

    with serving(engine=made_once("plain.pt", make), name="denoiser") as server:
        yield server


def drawn(server, *inputs):
    found = server.infer("generate", body(*inputs, tensor("STEPS", "INT32", [2])))
    return values_of(found["outputs"][0], np.uint8)


def test_a_model_that_takes_nothing_draws_a_picture_for_each_seed_or_as_many_as_count_says(plain):
    first = drawn(plain, tensor("SEED", "INT64", [3, 4]))
    assert len(first) == 2
    assert (first[0] != first[1]).any()
    again = drawn(plain, tensor("SEED", "INT64", [4]), tensor("COUNT", "INT32", [3]))
    assert all((picture == first[1]).all() for picture in again)
    for count in (0, -1, 101):
        asked = body(tensor("SEED", "INT64", [4]), tensor("COUNT", "INT32", [count]))
        assert f"COUNT asks for {count} pictures, expected 1 to 100" in plain.refusal("generate", asked)
    asked = body(tensor("SEED", "INT64", [4]), tensor("LABEL", "INT64", [1]))
    assert "takes no LABEL; leave it out" in plain.refusal("generate", asked)


def test_a_model_called_as_one_of_the_two_does_not_hide_it(plain):
    assert [entry["name"] for entry in plain.triton.get_model_repository_index()] == ["denoiser", "generate"]
    assert plain.triton.get_model_metadata("denoiser")["inputs"][0]["name"] == "sample"


def test_a_pipeline_that_only_changes_pictures_has_no_generate(plain):
    card = plain.service.card
    try:
        plain.service.card = replace(card, draws=False)
        assert [entry["name"] for entry in plain.triton.get_model_repository_index()] == ["denoiser"]
        assert "no model 'generate', expected denoiser" in plain.refusal("generate", labels_body([1], [1]), 404)
    finally:
        plain.service.card = card


def test_the_index_takes_what_triton_s_client_may_say(plain):
    for asked, status in ((None, 200), ({}, 200), ({"ready": True}, 200), ({"ready": 1}, 400), ({"x": 1}, 400)):
        assert send(plain.port, "POST", "/v2/repository/index", asked)[0] == status
    assert send(plain.port, "POST", "/v2/repository/index", b"[")[0] == 400


def test_an_answer_is_compressed_where_one_encoding_alone_is_named(plain):
    asked = body(tensor("SEED", "INT64", [1]), tensor("STEPS", "INT32", [1]))
    asked["parameters"] = {"binary_data_output": True}
    for accept, encoding in (("gzip", "gzip"), ("deflate", "deflate"), ("gzip, deflate", None), ("br", None)):
        _, headers, _ = send(plain.port, "POST", "/v2/models/generate/infer", asked, {"Accept-Encoding": accept})
        assert headers.get("content-encoding") == encoding


def test_an_engine_of_half_numbers_takes_and_gives_their_bits():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    from dq_deploy.engines.base import TensorSpec
    from dq_deploy.models.sizes import BATCH
    from dq_deploy.serve.kserve.denoiser import denoiser_form, feeds_of, tensors_of
    from dq_deploy.serve.kserve.tensors import binary_of, read_binary

    spec = TensorSpec(name="sample", dtype=np.dtype(bfloat16), shape=(BATCH, 2))

    class Halves:
        engine, manifest = "halves", None
        inputs = outputs = (spec,)

    form = denoiser_form(Halves(), 4)
    assert (form.inputs[0].datatype, form.inputs[0].shape, form.most_rows) == ("BF16", (-1, 2), 4)
    values = np.array([[1.5, -2.0]], bfloat16)
    given = read_binary("sample", "BF16", (1, 2), memoryview(values.tobytes()))
    found = feeds_of({"sample": given}, Halves(), 4)["sample"]
    assert found.dtype == bfloat16
    np.testing.assert_array_equal(found, values)
    assert binary_of(tensors_of({"sample": values})[0]) == values.tobytes()
