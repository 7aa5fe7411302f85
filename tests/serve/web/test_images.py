"""OpenAI's images API as OpenAI's own client speaks it: pictures, events, changed pictures, errors."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import openai
import pytest
from PIL import Image

from tests.serve.asking import wait_for
from tests.serve.live import connected, live, send


@pytest.fixture(scope="module")
def port(text_service):
    with live(text_service) as found:
        yield found


@pytest.fixture(scope="module")
def label_port(label_service):
    with live(label_service) as found:
        yield found


@pytest.fixture
def client(port):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as found:
        yield found


def png_of(width: int = 16, height: int = 16, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(noise).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def test_pictures_of_a_prompt(client):
    answer = client.images.generate(prompt="a red house", n=2, size="16x16", extra_body={"seed": 3, "steps": 3})
    assert [Image.open(io.BytesIO(base64.b64decode(d.b64_json))).size for d in answer.data] == [(16, 16)] * 2
    assert (answer.size, answer.output_format) == ("16x16", "png")
    assert answer.usage.input_tokens > 2
    assert answer.data[0].b64_json != answer.data[1].b64_json


def test_the_seed_that_is_said_draws_the_picture_again(client):
    first = client.images.generate(prompt="a cat", extra_body={"steps": 3})
    again = client.images.generate(prompt="a cat", extra_body={"steps": 3, "seed": first.data[0].model_extra["seed"]})
    assert first.data[0].b64_json == again.data[0].b64_json


@pytest.mark.parametrize(("name", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_the_format_that_is_asked_for(client, name, kind):
    answer = client.images.generate(prompt="a cat", output_format=name, extra_body={"seed": 1, "steps": 2})
    assert Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))).format == kind


def test_events_end_with_the_picture_of_the_plain_answer(client):
    plain = client.images.generate(prompt="a cat", extra_body={"seed": 1, "steps": 5})
    events = list(
        client.images.generate(prompt="a cat", stream=True, partial_images=2, extra_body={"seed": 1, "steps": 5})
    )
    partial, last = "image_generation.partial_image", "image_generation.completed"
    assert [event.type for event in events] == [partial, partial, last]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert events[-1].b64_json == plain.data[0].b64_json
    assert events[-1].usage.input_tokens == plain.usage.input_tokens
    assert len({event.model_extra["request_id"] for event in events}) == 1


def test_an_event_for_each_step_with_previews(port):
    body = {"prompt": "a cat", "seed": 1, "steps": 4, "stream": True, "step_events": True, "preview_every": 2}
    status, headers, text = send(port, "POST", "/v1/images/generations", body)
    events = [json.loads(line[6:]) for line in text.decode().splitlines() if line.startswith("data: ")]
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert events[0]["type"] == "image_generation.queued"
    assert events[0]["request_id"] == headers["x-request-id"] == events[-1]["request_id"]
    steps = [event for event in events if event["type"] == "image_generation.step"]
    assert [event["step"] for event in steps] == list(range(1, len(steps) + 1))
    assert {event["step"] for event in steps if event["b64_json"]} == {2, 4} - {len(steps)}
    assert events[-1]["type"] == "image_generation.completed"


def test_a_stream_without_events_says_that_it_is_there(client, monkeypatch):
    from dq_deploy.serve.web import images

    monkeypatch.setattr(images, "QUIET_SECONDS", 0.001)
    given = {"prompt": "a cat", "stream": True, "extra_body": {"seed": 1, "steps": 40}}
    with client.images.with_streaming_response.generate(**given) as response:
        text = response.read()
    assert b": waiting" in text
    assert [event.type for event in client.images.generate(**given)] == ["image_generation.completed"]


def test_a_picture_is_changed(client):
    def edit(**more):
        given = {"image": ("a.png", png_of(), "image/png"), "prompt": "a house", **more}
        return client.images.edit(**given)

    answer = edit(extra_body={"seed": 1, "steps": 4, "strength": 0.5})
    assert answer.size == "16x16"
    events = list(edit(stream=True, partial_images=1, extra_body={"seed": 1, "steps": 4, "strength": 0.5}))
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert events[-1].b64_json == answer.data[0].b64_json


def test_a_part_of_a_picture_is_painted_anew(client):
    given = {"image": ("a.png", png_of(), "image/png"), "mask": ("m.png", png_of(mode="L"), "image/png")}
    answer = client.images.edit(prompt="a house", extra_body={"seed": 1, "steps": 4}, **given)
    assert answer.size == "16x16"


REFUSED = [
    ({"prompt": " "}, 400, "prompt", "prompt is empty"),
    ({"prompt": 5}, 400, "prompt", "prompt is 5, expected a valid string"),
    ({}, 400, "prompt", "missing parameter: prompt"),
    ({"prompt": "x" * 10**6}, 400, "prompt", "prompt has 1000000 characters, expected at most 10000"),
    ({"prompt": "\ud800"}, 400, "prompt", "half a character"),
    ({"prompt": "x", "user": "\ud800"}, 400, "user", "expected a valid string"),
    ({"prompt": "x", "safety_identifier": "\ud800"}, 400, "safety_identifier", "expected a valid string"),
    ({"prompt": "x", "n": 0}, 400, "n", "n is 0"),
    ({"prompt": "x", "n": -5}, 400, "n", "n is -5"),
    ({"prompt": "x", "n": 1.5}, 400, "n", "n is 1.5"),
    ({"prompt": "x", "n": 10**400}, 400, "n", "n is 1"),
    ({"prompt": "x", "n": True}, 400, "n", "n is True"),
    ({"prompt": "x", "size": "0x16"}, 400, "size", "size is '0x16'"),
    ({"prompt": "x", "size": "99999x99999"}, 400, "size", "size is 99999x99999, expected"),
    ({"prompt": "x", "response_format": "url"}, 400, "response_format", "response_format is url, expected b64_json"),
    ({"prompt": "x", "output_format": "gif"}, 400, "output_format", "output_format is 'gif'"),
    ({"prompt": "x", "output_compression": 50}, 400, "output_compression", "is for jpeg and webp"),
    ({"prompt": "x", "partial_images": 2}, 400, "partial_images", "is for a request with stream true"),
    ({"prompt": "x", "partial_images": 4, "stream": True}, 400, "partial_images", "partial_images is 4"),
    ({"prompt": "x", "quality": "hd"}, 400, "quality", "quality is 'hd', expected 'auto'"),
    ({"prompt": "x", "style": "vivid"}, 400, "style", "unknown parameter: style"),
    ({"prompt": "x", "seed": -1}, 400, "seed", "seed is -1"),
    ({"prompt": "x", "steps": 0}, 400, "steps", "steps is 0"),
    ({"prompt": "x", "timeout_s": 0}, 400, "timeout_s", "timeout_s is 0"),
    ({"prompt": "x", "model": "dall-e-3"}, 404, "model", "'dall-e-3' is not served here"),
]


@pytest.mark.parametrize(("body", "status", "param", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_cannot_be_answered_is_refused_by_name(port, body, status, param, message):
    data = json.dumps(body).encode()
    found, headers, answer = send(port, "POST", "/v1/images/generations", data)
    assert (found, answer["error"]["param"]) == (status, param)
    assert message in answer["error"]["message"]
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert headers["x-request-id"]


BROKEN = [b"", b"{", b"[]", b"\xff\xfe", b'{"prompt": NaN}', b"[" * 100_000, b'{"prompt": "x", "guidance": 1e999}']
TWICE = b'{"prompt": "x", "n": 1, "n": 2}'


@pytest.mark.parametrize("body", [*BROKEN, TWICE], ids=[*map(str, range(len(BROKEN))), "twice"])
def test_a_body_that_is_no_object_of_json_is_refused(port, body):
    status, _, answer = send(port, "POST", "/v1/images/generations", body)
    assert status == 400
    assert ("'n' is given twice" in answer["error"]["message"]) == (body == TWICE)


def test_the_clients_own_errors_are_raised(client):
    with pytest.raises(openai.BadRequestError, match="prompt is empty"):
        client.images.generate(prompt="")
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.images.generate(prompt="x", model="other")


@pytest.mark.parametrize("data", [b"no picture", png_of()[:40], png_of(mode="L"), png_of(17, 16)])
def test_a_picture_that_cannot_be_used_is_refused(client, data):
    with pytest.raises(openai.BadRequestError, match="picture image"):
        client.images.edit(image=("a.png", data, "image/png"), prompt="x", extra_body={"steps": 2})


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(client, port):
    buffer = io.BytesIO()
    Image.new("RGB", (2000, 1000)).save(buffer, "PNG")
    with pytest.raises(openai.BadRequestError, match="it has 2000 x 1000 pixels, expected at most 1024 in all"):
        client.images.edit(image=("a.png", buffer.getvalue(), "image/png"), prompt="x", extra_body={"steps": 2})
    form = b"--b\r\n" + b"x" * 2_000_000
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert send(port, "POST", "/v1/images/edits", form, headers)[0] == 413


def form_of(*files: tuple[str, bytes]) -> bytes:
    fields = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % field
        for field in ((b"prompt", b"x"), (b"steps", b"2"), (b"seed", b"1"))
    )
    start = '--b\r\nContent-Disposition: form-data; name="{}"; filename="a"\r\n\r\n'
    return fields + b"".join(start.format(name).encode() + data + b"\r\n" for name, data in files) + b"--b--\r\n"


def plain_of(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n%%EOF\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((("image", EPS),), "the picture image is damaged or no PNG, JPEG, WebP, BMP or TIFF; save it again as PNG"),
        ((("image", b"<svg/>"),), "the picture image is damaged or no PNG"),
        ((("image", png_of(64, 64)),), "64 x 64 pixels"),
        ((("image", plain_of(4000)),), "4000 x 4000 pixels"),
        ((("image", png_of()), ("mask", png_of(64, 64, mode="L"))), "64 x 64 pixels"),
        ((("image", png_of()), ("image[]", png_of())), "image is given twice, expected once"),
    ],
)
def test_a_picture_that_would_harm_is_refused_before_it_is_decoded(port, files, message):
    headers = {"content-type": "Multipart/Form-Data; boundary=b"}  # names of types have no case
    status, _, answer = send(port, "POST", "/v1/images/edits", form_of(*files), headers)
    assert (status, message in answer["error"]["message"]) == (400, True), answer


def test_sizes_that_the_denoiser_does_not_take_are_the_clients_mistake(label_port):
    body = {"prompt": "1", "steps": 2, "size": "7x9"}
    status, _, answer = send(label_port, "POST", "/v1/images/generations", body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert "cannot be computed at" in answer["error"]["message"]


def test_many_unknown_fields_are_refused_at_the_first(port):
    body = {"prompt": "x", "steps": 2} | {f"a{i}": 1 for i in range(50_000)}
    status, _, answer = send(port, "POST", "/v1/images/generations", body)
    assert (status, answer["error"]["message"]) == (400, "unknown parameter: a0")


def test_a_form_without_a_picture_is_refused(port):
    form = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--b--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    status, _, answer = send(port, "POST", "/v1/images/edits", form, headers)
    assert (status, answer["error"]["message"]) == (400, "missing parameter: image")
    assert send(port, "POST", "/v1/images/edits", {"prompt": "x"})[0] == 415
    assert send(port, "POST", "/v1/images/edits", b"--b\r\n\0", headers)[0] == 400


def test_a_label_is_the_prompt_of_a_model_with_classes(label_port):
    def ask(prompt):
        return send(label_port, "POST", "/v1/images/generations", {"prompt": prompt, "seed": 1, "steps": 3})

    assert ask("2")[0] == 200
    assert ask("2")[2]["data"] == ask(" 2 ")[2]["data"] != ask("1")[2]["data"]
    for wrong in ("4", "-1", "", "two", "2.0", "9" * 100):
        status, _, answer = ask(wrong)
        assert status == 400
        assert "expected a class from 0 to" in answer["error"]["message"]


def test_a_model_that_changes_no_pictures_says_so(label_port):
    status, _, answer = send(
        label_port, "POST", "/v1/images/edits", b"", {"content-type": "multipart/form-data; boundary=b"}
    )
    assert status == 404
    assert "changes no pictures" in answer["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_request(label_port, label_service, stream):
    body = json.dumps({"prompt": "1", "steps": 1000, "n": 8, "stream": stream}).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with connected(label_port) as line:
        line.sendall(head + body)
        wait_for(lambda: any(s.order.started_at for s in label_service.standings()))
    wait_for(lambda: not label_service.standings() and label_service._admission.drawn == 0)


def test_a_request_is_listed_and_cancelled_by_its_id(label_port, label_service):
    body = json.dumps({"prompt": "1", "steps": 1000, "n": 30, "stream": True, "priority": 2}).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with connected(label_port) as line:
        line.sendall(head + body)
        wait_for(lambda: label_service.standings())
        listed = send(label_port, "GET", "/v1/requests")[2]
        (entry,) = listed["data"]
        assert (entry["n"], entry["priority"], listed["running"] + listed["waiting"]) == (30, 2, 1)
        status, _, answer = send(label_port, "DELETE", f"/v1/requests/{entry['id']}")
        assert (status, answer["cancelled"]) == (200, True)
        text = b""
        while b"cancelled" not in text:
            text += line.recv(4096)
        assert b"event: error" in text
    assert send(label_port, "DELETE", f"/v1/requests/{entry['id']}")[0] == 404


def test_a_full_queue_says_when_to_come_again(label_port, label_service):
    body = json.dumps({"prompt": "1", "steps": 1000, "n": 40, "stream": True}).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with connected(label_port) as line:
        line.sendall(head + body)
        wait_for(lambda: label_service.standings())
        status, headers, answer = send(label_port, "POST", "/v1/images/generations", {"prompt": "1", "n": 40})
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        assert int(headers["retry-after"]) >= 1
    wait_for(lambda: not label_service.standings())


def test_the_card_says_what_is_served(port, label_port):
    (card,) = send(port, "GET", "/v1/models")[2]["data"]
    dq = card["dq"]
    assert (dq["takes"], dq["size"], dq["edits"], dq["masks"], dq["previews"]) == ("prompt", "16x16", True, True, True)
    assert 0 < dq["integer_share"] <= 1
    assert dq["same_bytes"]["holds"]
    assert send(port, "GET", f"/v1/models/{card['id']}")[2] == card
    assert send(port, "GET", "/v1/models/other")[0] == 404
    (other,) = send(label_port, "GET", "/v1/models")[2]["data"]
    assert (other["dq"]["takes"], other["dq"]["labels"]["low"]) == ("label", 0)


def test_what_only_the_call_itself_refuses_is_the_clients_mistake(port, monkeypatch):
    from dq_deploy.errors import OptionError
    from dq_deploy.serve.web import images

    def refuse(*_):
        raise OptionError("`steps` is odd, expected even")

    monkeypatch.setattr(images, "asked_of_json", refuse)
    status, _, answer = send(port, "POST", "/v1/images/generations", {"prompt": "x"})
    assert (status, answer["error"]["message"]) == (400, "steps is odd, expected even")
