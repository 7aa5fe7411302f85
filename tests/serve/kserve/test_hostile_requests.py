"""What is no request gets a status of 4xx and one reason, and the next request its answer."""

from __future__ import annotations

import gzip
import json
import threading
import time
import zlib
from http.client import HTTPConnection

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serve.kserve.asking import binary, body, feeds, feeds_body, labels_body, tensor, text_body
from tests.serve.live import send

HEADER = "Inference-Header-Content-Length"


@pytest.fixture(autouse=True)
def still_right(request):
    """Afterwards the server answers as before."""
    yield
    if "labels" in request.fixturenames:
        server = request.getfixturevalue("labels")
        found = server.infer("denoiser", feeds_body(1))["outputs"][0]
        assert found["data"] == server.service.engine.run(feeds(1))["output"].ravel().tolist()


@pytest.mark.parametrize("length", ["0", "-1", "+5", "7 7", "1e3", "9" * 12, "9" * 400, "abc", "²", ""])
def test_a_header_length_that_lies_is_refused(labels, length):
    head, tail = binary(feeds())
    assert HEADER in labels.refusal("denoiser", head + tail, headers={HEADER: length.encode("utf-8").decode("latin-1")})


@pytest.mark.parametrize("shift", [-300, -1, 1, 200])
def test_a_header_length_beside_the_json_s_end_is_refused(labels, shift):
    head, tail = binary(feeds())
    labels.refusal("denoiser", head + tail, headers={HEADER: str(len(head) + shift)})


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (-1, "is -1, but 268 bytes of the body are left"),
        (10**30, "of the body are left"),
        (255, "has 255 bytes, expected 256"),
        (257, "has 257 bytes, expected 256"),
        ("256", "is '256'"),
        (True, "is True"),
        (256.0, "is 256.0"),
        ([256], "is [256]"),
    ],
)
def test_a_size_of_binary_data_that_lies_is_refused(labels, size, words):
    head, tail = binary(feeds())
    changed = json.loads(head)
    changed["inputs"][0]["parameters"]["binary_data_size"] = size
    head = json.dumps(changed).encode()
    assert words in labels.refusal("denoiser", head + tail, headers={HEADER: str(len(head))})


def test_bytes_behind_the_tensors_are_refused(labels):
    head, tail = binary(feeds())
    words = "269 bytes come behind the JSON, but the inputs say 268"
    assert words in labels.refusal("denoiser", head + tail + b"x", headers={HEADER: str(len(head))})


def test_binary_data_without_the_header_is_refused(labels):
    head, _ = binary(feeds())
    assert f"the header {HEADER} is missing" in labels.refusal("denoiser", head)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([1, 1, 8, 9], "64 values, expected 72"),
        ([1, 1, 8, -8], "expected sizes from 1"),
        ([0, 1, 8, 8], "expected sizes from 1"),
        ([2**40, 2**40, 1, 1], "fewer than 2^31"),
        ([2**31 - 1, 1, 1, 1], "expected 2147483647"),
        ([2**62] * 8, "fewer than 2^31"),
        ([10**4000], "fewer than 2^31"),
        ([1] * 9, "up to 8 whole numbers"),
        ([1] * 100000, "up to 8 whole numbers"),
        ([1.0, 1, 8, 8], "whole numbers"),
        ([True, 1, 8, 8], "whole numbers"),
        ("1,1,8,8", "whole numbers"),
        (None, "whole numbers"),
        ([8, 8], "has the shape [8, 8], expected [-1, 1, -1, -1]"),
        ([64], "has the shape [64]"),
        ([1, 1, 4, 16], None),  # which the engine takes
    ],
)
def test_shapes_that_do_not_fit_are_refused(labels, shape, words):
    asked = feeds_body()
    asked["inputs"][0]["shape"] = shape
    if words is None:
        labels.infer("denoiser", asked)
    else:
        assert words in labels.refusal("denoiser", asked)


def test_more_samples_than_a_call_holds_and_larger_ones_are_refused(labels):
    assert "batch of 9, expected at most 8" in labels.refusal("denoiser", feeds_body(9))
    wide = feeds_body()
    wide["inputs"][0] = tensor("sample", "FP32", np.zeros((1, 1, 8, 64), np.float32))
    assert "512 values a sample, expected at most 256" in labels.refusal("denoiser", wide)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"datatype": "FP16"}, "is FP16, expected FP32"),
        ({"datatype": "FLOAT"}, "datatype 'FLOAT', expected one of BOOL"),
        ({"datatype": ["FP32"]}, "datatype ['FP32']"),
        ({"name": "sample\x00\n"}, "no input 'sample\\x00\\n'"),
        ({"name": "\ud800"}, "no input '\\ud800'"),
        ({"name": "timestep"}, "'timestep' is given twice"),
        ({"name": 3}, "name of an input is 3"),
        ({"name": "x" * 10**5}, "no input 'xxx"),
        ({"data": None}, "is a NoneType, expected a list"),
        ({"data": [[0.0] * 64]}, "expected lists of 1"),
        ({"data": [0.0] * 63 + [[0.0]]}, "not nested"),
        ({"parameters": {"binary_data_size": 256}}, "data twice"),
        ({"parameters": {"shared_memory_region": "a"}}, "shared memory is not served here"),
        ({"parameters": {"what": 1}}, "the parameter 'what'"),
        ({"parameters": [1]}, "parameters of input 'sample' are [1]"),
        ({"more": 1}, "input 'sample' has 'more'"),
    ],
)
def test_inputs_that_are_none_are_refused(labels, change, words):
    asked = feeds_body()
    asked["inputs"][0] |= change
    assert words in labels.refusal("denoiser", asked)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": []}, "no inputs"),
        ({"inputs": None}, "no inputs"),
        ({"inputs": {"a": 1}}, "expected a list of objects"),
        ({"inputs": [1]}, "expected a list of objects"),
        ({"inputs": [{}] * 65}, "has 65 entries"),
        ({"inputs": [tensor("sample", "FP32", [1.0])]}, "has the shape [1]"),
        ({"inputs": [tensor("timestep", "FP32", [1.0])]}, "input sample is missing, expected FP32 [-1, 1, -1, -1]"),
        ({"outputs": [{"name": "x"}]}, "no output 'x'; expected output"),
        ({"outputs": [{"name": "output"}] * 2}, "given twice"),
        ({"outputs": [{"name": "output", "parameters": {"classification": 3}}]}, "classification"),
        ({"outputs": [{"name": "output", "parameters": {"binary_data": 1}}]}, "expected true or false"),
        ({"outputs": [{"name": "output", "parameters": {"shared_memory_region": "a"}}]}, "shared memory"),
        ({"id": 5}, "id is 5"),
        ({"id": "x" * 257}, "a text of 257 characters"),
        ({"more": 1}, "the body has 'more'"),
        ({"parameters": {"priority": 11}}, "priority is 11, expected -10 to 10"),
        ({"parameters": {"priority": 1.5}}, "priority is 1.5"),
        ({"parameters": {"timeout": -1}}, "timeout is -1"),
        ({"parameters": {"timeout": 10**400}}, "expected microseconds"),
        ({"parameters": {"sequence_id": 1}}, "sequences are not served"),
        ({"parameters": {"what": 1}}, "the parameter 'what'"),
        ({"parameters": {"binary_data_output": "yes"}}, "expected true or false"),
    ],
)
def test_bodies_that_are_no_request_are_refused(labels, change, words):
    assert words in labels.refusal("denoiser", {**feeds_body(), **change})


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"[" * 100000,
        b'{"inputs": ' + b"[" * 100000,
        b'{"id": "\xff"}',
        b'{"inputs": [{"name": "sample", "datatype": "FP32", "shape": [1], "data": [NaN]}]}',
        b'{"inputs": [{"name": "sample", "datatype": "FP32", "shape": [1], "data": [-Infinity]}]}',
        b'{"inputs": [{"name": "sample", "datatype": "FP32", "shape": [1], "data": [1e999]}]}',
        b'{"inputs": [{"name": "sample", "datatype": "FP32", "shape": [1], "data": [' + b"9" * 5000 + b"]}]}",
        "{}".encode("utf-16"),
    ],
)
def test_bodies_that_are_no_json_are_refused(labels, text):
    labels.refusal("denoiser", text)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["sample", "timestep"])
def test_numbers_that_are_not_finite_are_refused(labels, name, value):
    given = feeds()
    given[name].flat[0] = value
    head, tail = binary(given)
    words = labels.refusal("denoiser", head + tail, headers={HEADER: str(len(head))})
    assert f"input {name} holds {value}" in words


def test_a_class_that_is_none_is_refused(labels):
    asked = feeds_body()
    asked["inputs"][2]["data"] = [10]
    assert "expected 0..9" in labels.refusal("denoiser", asked)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nobody", "no model 'nobody', expected denoiser, generate, digits"),
        ("a%00%0Ab", "no model 'a\\x00\\nb'"),
        ("%ED%A0%80", "no model"),
        ("x" * 5000, "no model 'xxx"),
        ("denoiser/versions/2", "denoiser has no version '2', expected 1"),
        ("denoiser/versions/-1", "no version '-1'"),
        ("denoiser/versions/01", "no version '01'"),
    ],
)
def test_a_model_or_version_that_is_not_there_is_refused(labels, path, words):
    assert words in labels.refusal(path, feeds_body(), 404)
    for part in ("", "/ready", "/config", "/stats"):
        status, _, answer = send(labels.port, "GET", f"/v2/models/{path}{part}")
        assert (status, list(answer)) == (404, ["error"])


def test_paths_and_methods_that_are_not_there_have_the_same_form_of_error(labels):
    for method, path, wanted in (("GET", "/v2/x", 404), ("PUT", "/v2", 405), ("GET", "/v2/models/generate/infer", 405)):
        status, _, answer = send(labels.port, method, path)
        assert (status, list(answer)) == (wanted, ["error"])
    assert list(send(labels.port, "GET", "/v1/x")[2]["error"]) == ["message", "type", "param", "code"]


@pytest.mark.parametrize(
    ("data", "encoding", "status", "words"),
    [
        (b"xx", "gzip", 400, "is no gzip"),
        (b"xx", "deflate", 400, "is no deflate"),
        (gzip.compress(b"{}", mtime=0)[:-3], "gzip", 400, "ends too early"),
        (gzip.compress(b"{}", mtime=0) + b"x", "gzip", 400, "more behind its end"),
        (b"", "gzip", 400, "ends too early"),
        (b"{}", "br", 415, "expected gzip, deflate or none"),
        (gzip.compress(b"{}", mtime=0), "gzip, gzip", 415, "expected gzip"),
        (zlib.compress(bytes(3 * 2**20), 9), "deflate", 413, "larger than 2097152 bytes when unpacked"),
    ],
)
def test_compressed_bodies_that_are_damaged_or_too_large_are_refused(labels, data, encoding, status, words):
    assert words in labels.refusal("denoiser", data, status, {"Content-Encoding": encoding})


def test_a_body_that_is_too_large_is_refused_before_it_comes(labels):
    for size, header, words in (
        (2 * 2**30, {}, "larger than 67108864 bytes"),
        (2**21 + 1, {}, "the JSON has 2097153 bytes, expected at most 2097152; send binary tensors"),
        (2**22, {HEADER: "2"}, "the body has 4194304 bytes, expected at most 2105728 for this model"),
    ):
        found = labels.refusal("denoiser", b"{}", 413, {"Content-Length": str(size), **header})
        assert words in found


def test_a_body_that_does_not_say_how_large_it_is_is_refused_when_it_has_come(labels):
    connection = HTTPConnection("127.0.0.1", labels.port, timeout=30)
    chunks = (b" " * 2**20 for _ in range(3))
    connection.request("POST", "/v2/models/denoiser/infer", chunks, encode_chunked=True)
    response = connection.getresponse()
    assert (response.status, b"the JSON has 3145728 bytes" in response.read()) == (413, True)
    connection.close()


@pytest.mark.parametrize("part", [b"[],", b"{},", b"[", b'{"":'])
def test_lists_and_objects_without_end_are_refused_before_they_are_read(labels, part):
    text = b'{"inputs": [' + part * 60000
    assert "lists and objects, expected at most 50000" in labels.refusal("denoiser", text)


def test_many_bodies_that_unpack_to_much_hold_up_nobody(labels):
    asked = feeds_body()
    asked["inputs"][0]["data"] = [[]] * 40000
    nested = zlib.compress(json.dumps(asked).encode() + b" " * 10**6, 9)
    refused = []

    def send_it():
        refused.append(labels.refusal("denoiser", nested, headers={"Content-Encoding": "deflate"}))

    threads = [threading.Thread(target=send_it) for _ in range(10)]
    for thread in threads:
        thread.start()
    times = []
    while any(thread.is_alive() for thread in threads):
        began = time.monotonic()
        labels.infer("denoiser", feeds_body())
        times.append(time.monotonic() - began)
    assert len(refused) == 10
    assert sorted(times)[len(times) // 2] < 2


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (labels_body([10], [1]), "LABEL is '10', expected a class from 0 to 9"),
        (labels_body([-1], [1]), "LABEL is '-1', expected a class from 0 to 9"),
        (labels_body([2**62], [1]), "expected a class from 0 to 9"),
        (labels_body([1], [-1]), "SEED is -1, expected"),
        (labels_body([1], [2**32]), "SEED is 4294967296, expected"),
        (labels_body([1, 2], [1, 2, 3]), "SEED has 3 values, expected 2 as LABEL says"),
        (labels_body([1] * 101, [1]), "LABEL asks for 101 pictures, expected 1 to 100"),
        (labels_body([1], [1], steps=0), "STEPS is 0, expected"),
        (labels_body([1], [1], steps=1001), "STEPS is 1001, expected"),
        (body(tensor("LABEL", "INT64", [1])), "input SEED is missing, expected INT64 [-1]"),
        (body(tensor("SEED", "INT64", [1])), "input LABEL is missing"),
        (text_body(["x"], [1]), "takes no PROMPT, expected LABEL with classes from 0 to 9"),
        (body(*labels_body([1], [1])["inputs"], tensor("GUIDANCE", "FP32", [2.0])), "takes no GUIDANCE"),
        (body(*labels_body([1], [1])["inputs"], tensor("COUNT", "INT32", [2])), "no COUNT: LABEL says how many"),
        (body(*labels_body([1], [1])["inputs"], tensor("HEIGHT", "INT32", [8])), "got HEIGHT alone, expected WIDTH"),
        (
            body(
                *labels_body([1], [1])["inputs"], tensor("HEIGHT", "INT32", [2**31 - 1]), tensor("WIDTH", "INT32", [8])
            ),
            "WIDTH x HEIGHT is '8x2147483647', expected",
        ),
        (
            body(*labels_body([1], [1])["inputs"], tensor("HEIGHT", "INT32", [64]), tensor("WIDTH", "INT32", [8])),
            "WIDTH x HEIGHT is 8x64, expected at most 256 pixels",
        ),
    ],
)
def test_pictures_that_cannot_be_drawn_are_refused_by_the_input_s_name(labels, asked, words):
    assert words in labels.refusal("generate", asked)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (text_body([" "], [1]), "PROMPT is empty"),
        (text_body(["x" * 10001], [1]), "PROMPT has 10001 characters, expected at most 10000"),
        (text_body(["x"], [1], tensor("GUIDANCE", "FP32", [3.0, 4.0])), "GUIDANCE has the shape [2], expected [1]"),
        (text_body(["x"], [1], tensor("NEGATIVE_PROMPT", "BYTES", ["x" * 10001])), "NEGATIVE_PROMPT"),
        (text_body(["x"], [1], tensor("LABEL", "INT64", [1])), "takes no LABEL; leave it out"),
    ],
)
def test_prompts_that_cannot_be_drawn_are_refused(text, asked, words):
    assert words in text.refusal("generate", asked)


def test_a_prompt_of_bytes_that_are_no_text_is_refused(text):
    prompt = b"\x02\0\0\0\xff\xfe"
    head = text_body(["x"], [1])
    head["inputs"][0] = {
        "name": "PROMPT",
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"binary_data_size": len(prompt)},
    }
    data = json.dumps(head).encode()
    assert "PROMPT is no UTF-8" in text.refusal("generate", data + prompt, headers={HEADER: str(len(data))})


WHOLE = binary(feeds(2), id="x", parameters={"binary_data_output": True})


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_a_mutated_body_is_answered_or_refused(labels, data):
    head, tail = WHOLE
    body = bytearray(head + tail)
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(body) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "digit"]))
        if kind == "flip":
            body[where] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del body[where : where + data.draw(st.integers(1, 40))]
        elif kind == "insert":
            body[where:where] = data.draw(st.binary(min_size=1, max_size=8))
        else:
            numbers = [i for i in range(min(len(head), len(body))) if 48 <= body[i] <= 57]
            body[data.draw(st.sampled_from(numbers or [0]))] = data.draw(st.integers(48, 57))
        body = body or bytearray(b"x")
    length = len(head) + data.draw(st.sampled_from([0, 0, 0, 1, -1, 7, len(tail), len(body)]))
    status, _, answer = send(labels.port, "POST", "/v2/models/denoiser/infer", bytes(body), {HEADER: str(length)})
    assert status == 200 or (400 <= status < 500 and list(answer) == ["error"])
