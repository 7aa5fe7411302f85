"""Priority, time limits, a full queue, a client that goes away, and a server that stops."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from tests.serve.asking import wait_for
from tests.serve.kserve.asking import feeds_body, labels_body
from tests.serve.kserve.conftest import serving
from tests.serve.live import send

LONG = 1000


@pytest.fixture
def small(labels_record):
    """Two pictures are drawn at once, and four may wait."""
    from dq_deploy.serve import Limits

    with serving(engine=labels_record, limits=Limits(max_batch=1, queue=4)) as server:
        yield server


def begun(server, body, answers):
    """Ask in a thread of its own."""

    def ask():
        answers.append(send(server.port, "POST", "/v2/models/generate/infer", body))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def running(server):
    return [standing for standing in server.service.standings() if standing.order.started_at is not None]


def test_a_request_that_is_cancelled_says_so(small):
    answers = []
    thread = begun(small, labels_body([1, 2], [1], steps=LONG), answers)
    wait_for(lambda: len(running(small)) == 2)
    first = running(small)[0].order
    assert send(small.port, "DELETE", f"/v1/requests/{first.id}")[0] == 200
    thread.join(20)
    assert (answers[0][0], answers[0][2]) == (499, {"error": "the request was cancelled"})
    wait_for(lambda: not small.service.standings())  # the other picture was given up, too


def test_where_the_client_goes_away_its_pictures_are_given_up(small):
    data = json.dumps(labels_body([1, 2], [1], steps=LONG)).encode()
    with socket.create_connection(("127.0.0.1", small.port)) as connection:
        connection.sendall(
            b"POST /v2/models/generate/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data)
        )
        connection.sendall(data)
        wait_for(lambda: len(running(small)) == 2)
    wait_for(lambda: not small.service.standings(), 5)
    failed = small.triton.get_inference_statistics("generate")["model_stats"][0]["inference_stats"]["fail"]
    assert failed["count"] == 1


def test_a_queue_that_is_full_keeps_none_of_the_pictures(small):
    answers = []
    thread = begun(small, labels_body([1, 2], [1], steps=LONG), answers)
    wait_for(lambda: len(running(small)) == 2)
    status, headers, answer = send(small.port, "POST", "/v2/models/generate/infer", labels_body([1] * 7, [1]))
    assert status == 429
    assert int(headers["retry-after"]) >= 1
    assert "ask again later" in answer["error"]
    assert len(small.service.standings()) == 2
    small.service.end_all()
    thread.join(20)
    assert (answers[0][0], answers[0][2]) == (503, {"error": "the server stops"})


def test_a_timeout_is_of_microseconds(small):
    began = time.monotonic()
    asked = labels_body([1], [1], steps=LONG, parameters={"timeout": 100_000})
    assert "not done within 0.1 s" in small.refusal("generate", asked, 504)
    assert time.monotonic() - began < 5


def test_priority_is_that_of_the_server_s_requests(small):
    answers = []
    thread = begun(small, labels_body([1], [1], steps=LONG, parameters={"priority": 7}), answers)
    wait_for(lambda: len(running(small)) == 1)
    assert running(small)[0].order.terms.priority == 7
    small.service.end_all()
    thread.join(20)


def test_the_request_s_id_cancels_it_and_stands_in_the_answer(labels):
    status, headers, _ = send(labels.port, "POST", "/v2/models/denoiser/infer", feeds_body())
    assert status == 200
    assert headers["x-request-id"].startswith("req-")


def test_a_server_that_stops_lives_but_is_not_ready(small):
    small.service.stop_taking()
    assert small.triton.is_server_live()
    assert not small.triton.is_server_ready()
    assert not small.triton.is_model_ready("denoiser")
    assert {entry["state"] for entry in small.triton.get_model_repository_index()} == {"UNAVAILABLE"}
    assert "the server stops" in small.refusal("denoiser", feeds_body(), 503)


def test_tokens_are_asked_for_but_for_health(labels):
    from dq_deploy.serve.web.access import Access
    from tests.serve.live import live

    with live(labels.service, Access(tokens=("a-token-of-this-test",))) as port:
        assert [send(port, "GET", f"/v2/health/{path}")[0] for path in ("live", "ready")] == [200, 200]
        status, _, answer = send(port, "GET", "/v2/models/denoiser")
        assert (status, list(answer)) == (401, ["error"])
        allowed = {"Authorization": "Bearer a-token-of-this-test"}
        assert send(port, "POST", "/v2/models/denoiser/infer", feeds_body(), allowed)[0] == 200
