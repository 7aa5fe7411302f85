"""What stands in front of Ray's proxy: a request that got no answer is asked again, with its body, within its time."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
import ray_ask_again
from ray_ask_again import MOST_BYTES, AskAgain


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(ray_ask_again, "WAIT_SECONDS", 0.01)


def asked(lost, *, body=(b"red ", b"heart"), limit_s=5.0, seconds=0.0, gone=False):
    """(status, headers, body) where the first `lost` replicas answer nothing, and the bodies that they all read."""
    read, sent = [], []
    messages = [
        {"type": "http.request", "body": piece, "more_body": number < len(body) - 1}
        for number, piece in enumerate(body)
    ]
    coming = iter([*messages[: 1 if gone else None], *([{"type": "http.disconnect"}] if gone else [])])

    async def receive():
        return next(coming)

    async def send(message):
        sent.append(message)

    async def proxy(scope, receive, send):
        whole, more = b"", True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            whole += message.get("body", b"")
        read.append(whole)
        if len(read) > lost:
            await asyncio.sleep(seconds)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": whole})

    asyncio.run(AskAgain(proxy, limit_s)({"type": "http"}, receive, send))
    if not sent:
        return None, read
    return (sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]), read


def test_an_answer_passes_as_it_is():
    answer, read = asked(0)
    assert answer == (200, {}, b"red heart")
    assert len(read) == 1


@pytest.mark.parametrize("lost", [1, 2])
def test_another_replica_gets_the_whole_body(lost):
    answer, read = asked(lost)
    assert answer == (200, {}, b"red heart")
    assert read == [b"red heart"] * (lost + 1)


def test_where_nobody_answers_it_says_503_and_when_to_ask_again():
    (status, headers, body), read = asked(9)
    assert (status, headers[b"retry-after"], len(read)) == (503, b"1", 3)
    assert json.loads(body)["error"]["code"] == "replica_lost"


def test_a_second_try_ends_with_the_time_of_the_request():
    (status, _, body), read = asked(1, limit_s=0.2, seconds=5.0)
    assert (status, len(read)) == (504, 2)
    assert "not done within 0.2 s" in json.loads(body)["error"]["message"]


def test_a_body_that_is_too_large_to_keep_is_asked_once():
    (status, _, _), read = asked(1, body=(b"x" * MOST_BYTES, b"x"))
    assert (status, len(read)) == (503, 1)


def test_nobody_is_asked_for_a_client_that_went_away():
    answer, read = asked(9, gone=True)
    assert answer is None
    assert len(read) == 1
