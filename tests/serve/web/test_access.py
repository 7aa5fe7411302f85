"""Who may ask, and how much: tokens, bodies that are too large or too slow, connections that say nothing."""

from __future__ import annotations

import json
import logging
import socket
import time

import pytest

from dq_deploy.errors import FileProblemError
from dq_deploy.serve.web.access import Access
from dq_deploy.serve.web.tokens import read_tokens
from tests.serve.asking import wait_for
from tests.serve.live import connected, live, send

TOKENS = ("a-token-of-one-client", "a-token-of-another-one")


@pytest.fixture(scope="module")
def guarded(label_service):
    access = Access(tokens=TOKENS, most_json=2000, most_upload=5000, body_seconds=0.4)
    with live(label_service, access) as port:
        yield port


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/requests", "/openapi.json", "/nothing"])
@pytest.mark.parametrize(
    "headers", [{}, bearer(""), bearer("wrong"), bearer(TOKENS[0][:-1]), {"Authorization": f"Basic {TOKENS[0]}"}]
)
def test_without_a_token_nothing_is_told(guarded, path, headers):
    status, found, answer = send(guarded, "GET", path, headers=headers)
    assert (status, found["www-authenticate"]) == (401, "Bearer")
    assert answer["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("token", TOKENS)
def test_each_token_is_let_in(guarded, token):
    assert send(guarded, "GET", "/v1/models", headers=bearer(token))[0] == 200
    assert send(guarded, "POST", "/v1/images/generations", {"prompt": "1", "steps": 2}, bearer(token))[0] == 200


def test_a_page_of_another_site_asks_for_nothing(label_service):
    foreign = {"Sec-Fetch-Site": "cross-site"}
    with live(label_service) as port:
        status, _, answer = send(port, "POST", "/v1/images/generations", {"prompt": "1"}, foreign)
        assert (status, answer["error"]["code"]) == (403, "cross_site")
        assert send(port, "DELETE", "/v1/requests/x", headers=foreign)[0] == 403
        assert send(port, "GET", "/", headers=foreign)[0] == 200
        for own in ("same-origin", "none"):
            assert send(port, "GET", "/v1/models", headers={"Sec-Fetch-Site": own})[0] == 200


def test_the_page_needs_no_token(guarded):
    assert send(guarded, "GET", "/")[0] == 200


def test_a_body_that_is_too_large_is_refused_before_and_while_it_comes(guarded):
    status, _, answer = send(guarded, "POST", "/v1/images/generations", b"x" * 2001, bearer(TOKENS[0]))
    assert (status, answer["error"]["message"]) == (413, "the body is larger than 2000 bytes, which is the most")
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKENS[0]}\r\n"
    with connected(guarded) as line:
        line.sendall((head + "Content-Length: 2000000000\r\n\r\n").encode())
        assert b"413" in line.recv(4096)
    with connected(guarded) as line:
        line.sendall((head + "Transfer-Encoding: chunked\r\n\r\n").encode())
        line.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
        line.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
        assert b"413" in line.recv(4096)


def test_a_form_is_large_only_where_forms_are_taken(guarded):
    headers = {**bearer(TOKENS[0]), "Content-Type": "multipart/form-data; boundary=x"}
    assert send(guarded, "POST", "/v1/images/generations", b"x" * 2001, headers)[0] == 413


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/images/edits", "/v2/repository/index"])
def test_a_compressed_body_is_refused_where_nobody_unpacks_it(guarded, path):
    headers = {**bearer(TOKENS[0]), "Content-Encoding": "gzip"}
    assert send(guarded, "POST", path, {"prompt": "1"}, headers)[0] == 415


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/images/edits", "/v2/models/denoiser/infer"])
def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_fault_of_the_server(guarded, path, caplog):
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKENS[0]}\r\nContent-Length: 50\r\n"
    with caplog.at_level("INFO", "dq_deploy.serve"):
        with connected(guarded) as line:
            line.sendall((head + "\r\n{").encode())
        end = time.monotonic() + 10
        while not caplog.records and time.monotonic() < end:
            time.sleep(0.01)
    time.sleep(0.05)
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_a_body_that_does_not_come_is_given_up(guarded):
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKENS[0]}\r\n"
    with connected(guarded) as line:
        line.sendall((head + "Content-Length: 50\r\n\r\n{").encode())
        began = time.monotonic()
        assert b"408" in line.recv(4096)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("sent", [b"", b"GET /v1/mod"])
def test_a_connection_that_asks_for_nothing_is_closed(guarded, sent):
    with connected(guarded) as line:
        line.sendall(sent)
        assert line.recv(100) == b""


@pytest.mark.parametrize("sent", [b"GET /v1/mod", b"\r\n", b"G"])
@pytest.mark.parametrize("first", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"])
def test_a_connection_that_asked_before_is_closed_likewise(guarded, first, sent):
    with connected(guarded) as line:
        line.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n" + first + b"\r\n")
        answer = b""
        while not answer.endswith(b'{"live":true}'):
            answer += line.recv(4096)
        line.sendall(sent)
        line.settimeout(5)
        assert line.recv(100) == b""


@pytest.mark.parametrize("head", [b"GET /" + b"a" * 70000, b"X: " + b"a" * 300_000, b"X: 1\r\n" * 40_000])
def test_a_head_that_is_too_large_is_refused(guarded, head):
    start = b"" if head.startswith(b"GET") else b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"
    with connected(guarded) as line:
        line.sendall(start + head)
        assert line.recv(100).split(b" ")[1] in (b"400", b"431")


def test_a_body_larger_than_a_head_may_be_counts_for_no_head(guarded):
    head = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 80000\r\n\r\n"
    with connected(guarded) as line:
        line.sendall(2 * (head + b"x" * 80_000))
        answer = b""
        while answer.count(b"HTTP/1.1 413") < 2:  # more than this server takes; the line goes on
            answer += (found := line.recv(4096))
            assert found


def test_many_idle_connections_harm_nobody(guarded):
    lines = [connected(guarded) for _ in range(200)]
    try:
        assert send(guarded, "GET", "/v1/models", headers=bearer(TOKENS[0]))[0] == 200
    finally:
        for line in lines:
            line.close()


def test_log_lines_hold_no_prompt_unless_asked_for(text_service, caplog):
    for log_prompts in (False, True):
        with live(text_service, Access(log_prompts=log_prompts)) as port, caplog.at_level(logging.INFO, "dq_deploy"):
            caplog.clear()
            send(port, "POST", "/v1/images/generations", {"prompt": "a secret", "steps": 2})
            wait_for(lambda: caplog.records)
        line = json.loads(caplog.records[0].getMessage())
        assert (line["status"], line["kind"], line["became"]) == (200, "generation", "done")
        assert ("a secret" in caplog.text) == log_prompts


def test_tokens_are_read_from_lines(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# of the team\n\n  a-token-of-one-client \nanother-token-000000\n")
    assert read_tokens(path) == ("a-token-of-one-client", "another-token-000000")


def test_tokens_may_come_from_an_editor_of_windows(tmp_path):
    path = tmp_path / "tokens"
    path.write_bytes(b"\xef\xbb\xbfa-token-of-one-client\r\nanother-token-000000\r\n")
    assert read_tokens(path) == ("a-token-of-one-client", "another-token-000000")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no token"),
        ("short", "token 1 of .* is too short"),
        ("x" * 20 + " y", "or no plain text"),
        (None, "read"),
    ],
)
def test_a_file_of_tokens_that_is_none_is_refused(tmp_path, text, message):
    path = tmp_path / "tokens"
    if text is not None:
        path.write_text(text)
    with pytest.raises(FileProblemError, match=message):
        read_tokens(path)


def test_a_client_that_does_not_read_is_given_up_and_harms_nobody(label_service):
    body = json.dumps({"prompt": "1", "steps": 1000, "n": 30, "stream": True, "step_events": True, "preview_every": 1})
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    with live(label_service, Access(send_seconds=0.5), send_buffer=4096) as port, connected(port) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        line.sendall(head.encode())
        wait_for(lambda: label_service.standings())
        other = {"prompt": "2", "steps": 3, "user": "another"}
        assert send(port, "POST", "/v1/images/generations", other)[0] == 200
        wait_for(lambda: not label_service.standings(), 30)
