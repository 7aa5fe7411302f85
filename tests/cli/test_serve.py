"""`dq-serve` as a process: where it listens, how it ends, and what it refuses in a line."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

import pytest

from dq_deploy.record import content_sha256, load_record
from tests.cli.running import command
from tests.serve.live import send


@contextlib.contextmanager
def serving(record, *more, log=subprocess.DEVNULL):
    """A running server and its port."""
    arguments = ["--engine", record, "--port", 0, "--threads", 1, *more]
    process = subprocess.Popen(
        [sys.executable, "-m", "dq_deploy.cli.serve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"serving \S+ \(native .*\) on http://127.0.0.1:(\d+)\n", line)
        assert found, line
        yield process, int(found[1])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def draw(port, **changes):
    body = {"prompt": "1", "seed": 7, "steps": 6, "n": 2, **changes}
    return send(port, "POST", "/v1/images/generations", body)


def answer_while_it_is_told_to_stop(process, port, **asked):
    """Told while it draws; it ends by itself with the code 0."""
    found = []
    thread = threading.Thread(target=lambda: found.append(draw(port, **asked)))
    thread.start()
    while not send(port, "GET", "/v1/requests")[2]["data"]:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    thread.join(60)
    assert process.wait(20) == 0
    return found[0]


@dataclass(frozen=True, kw_only=True)
class Lives:
    """A server that was killed under load, and another that was told to stop while it drew.

    Attributes:
        card: the model's entry in the first one's list.
        pictures: what each answered to one request.
        last: status and answer of the request that the second had taken when it was told to stop.
    """

    card: dict[str, Any]
    pictures: list[Any]
    last: tuple[int, Any]


@pytest.fixture(scope="module")
def proof(tiny_record_path, tmp_path_factory):
    """A report on the tiny record."""
    values = {"exact": True, "integer_mac_share": 0.5, "target": "native"}
    values["record_sha256"] = content_sha256(load_record(tiny_record_path))
    path = tmp_path_factory.mktemp("proof") / "proof.json"
    path.write_text(json.dumps(values))
    return path


@pytest.fixture(scope="module")
def lives(tiny_record_path, proof):
    """Starting a server takes longer than all that is asked of it here."""
    with serving(tiny_record_path, "--proof", proof) as (process, port):
        card = send(port, "GET", "/v1/models")[2]["data"][0]
        pictures = [draw(port)[2]["data"]]
        loads = [threading.Thread(target=quietly, args=(port,)) for _ in range(4)]
        for load in loads:
            load.start()
        time.sleep(0.1)
        process.kill()
        for load in loads:
            load.join(30)
    with serving(tiny_record_path) as (process, port):
        pictures.append(draw(port)[2]["data"])
        status, _, answer = answer_while_it_is_told_to_stop(process, port, n=10, steps=40)
    return Lives(card=card, pictures=pictures, last=(status, answer))


def test_killed_under_load_and_started_again_it_gives_the_same_bytes(lives):
    first, second = lives.pictures
    assert first == second
    assert len(first) == 2


def test_what_was_taken_is_finished_when_the_server_is_told_to_stop(lives):
    status, answer = lives.last
    assert (status, len(answer["data"])) == (200, 10)


def test_what_takes_longer_than_it_may_is_told_so(tiny_record_path):
    with serving(tiny_record_path, "--drain", "0.2") as running:
        status, _, answer = answer_while_it_is_told_to_stop(*running, n=90, steps=1000)
    assert (status, answer["error"]["message"]) == (503, "the server stops")


def quietly(port):
    with contextlib.suppress(OSError, ValueError, HTTPException):  # the server is killed meanwhile
        draw(port, n=10, steps=200)


REFUSED = [
    (["--port", "70000"], "--port is 70000, expected 0 to 65535"),
    (["--host", "0.0.0.0"], "--host 0.0.0.0 is reached from other machines, expected --token-file"),
    (["--max-batch", "0"], "--max-batch is 0, expected at least 1"),
    (["--queue", "0"], "--queue is 0, expected at least 1"),
    (["--time-limit", "nan"], "--time-limit is nan, expected seconds above 0"),
    (["--pipeline-threads", "0"], "--pipeline-threads is 0, expected a whole number from 1"),
    (["--certificate", "x.pem"], "got one of --certificate and --key"),
    (["--certificate", "x.pem", "--key", "y.pem"], "--certificate x.pem and --key y.pem cannot be used"),
    (["--steps", "1001"], "--steps is 1001, expected 1 to 1000"),
    (["--write-triton", "out", "--queue", "5"], "was given with --write-triton, which has no use for it"),
    (["--isa", "sse2"], "instruction set is 'sse2', which there are no kernels for, expected one of"),
    (["--metrics-port", "70000"], "--metrics-port is 70000, expected 0 to 65535 and another one than --port"),
    (["--claim", "weights"], "--claim was given without --write-kubernetes or --write-kserve, which it is for"),
    (["--token-file", "missing"], "the tokens missing cannot be read"),
    (["--component", "unet"], "--component is unet, but no pipeline draws"),
    (["--scheduler", "nothing"], "scheduler is 'nothing', which diffusers does not have"),
    (["--proof", "missing.json"], "the proof missing.json cannot be read"),
    (["--host", "no.such.name.invalid", "--token-file", "TOKENS"], "--host is 'no.such.name.invalid'"),
    (["--name", "a/b"], "--name is 'a/b'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[" ".join(o) for o, _ in REFUSED])
def test_what_cannot_be_served_is_refused_in_one_line(tiny_record_path, tmp_path, options, message):
    tokens = tmp_path / "tokens"
    tokens.write_text("a-token-of-one-client\n")
    given = [tokens if option == "TOKENS" else option for option in options]
    done = command("serve", "--engine", tiny_record_path, "--port", 0, *given)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_a_port_that_is_taken_is_refused(tiny_record_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = command("serve", "--engine", tiny_record_path, "--port", taken.getsockname()[1])
    assert done.code == 2
    assert "cannot listen on 127.0.0.1 port" in done.err


def test_a_metrics_port_that_is_taken_is_refused_before_the_model_is_read(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"nothing that could be read")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command("serve", "--engine", tmp_path / "model.pt", "--port", 0, "--metrics-port", port)
    assert done.code == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in done.err
    assert "give another --metrics-port" in done.err


def test_the_proof_on_the_card_is_of_what_is_served(tiny_record_path, proof, lives, tmp_path):
    values = json.loads(proof.read_text())
    of_another = tmp_path / "proof.json"
    of_another.write_text(json.dumps({**values, "record_sha256": "0" * 64}))
    done = command("serve", "--engine", tiny_record_path, "--port", 0, "--proof", of_another)
    assert done.code == 2
    assert "is of the record 000000000000 on native, expected" in done.err
    shown = lives.card["dq"]["proof"]
    assert (shown["exact"], shown["file"], len(shown["sha256"])) == (True, "proof.json", 64)


def test_a_model_repository_is_written_once(tiny_engine, demo_model_dir, tmp_path):
    out = tmp_path / "repository"
    done = command("serve", "--engine", tiny_engine, "--name", "digits", "--write-triton", out)
    assert done.code == 0, done.err
    assert {path.name for path in out.iterdir()} == {"digits", "digits_denoiser"}
    assert "LABEL" in done.out
    again = command("serve", "--engine", tiny_engine, "--name", "digits", "--write-triton", out)
    assert again.code == 2
    assert "repository" in again.err
    wrong = command("serve", "--engine", tiny_engine, "--steps", 5, "--write-triton", tmp_path / "other")
    assert "--steps was given with --write-triton, which has no use for it" in wrong.err
    assert not (tmp_path / "other").exists()


NO_MANIFEST = [
    ([], "into a secret; --threads, for a pod must ask for that many cores; --isa, one that all your nodes have, of"),
    (["--threads", "1"], "--write-kubernetes wants --token-file, for a pod is reached from other machines"),
    (["--token-file", "TOKENS"], "--write-kubernetes wants --threads, for a pod"),
    (["--token-file", "TOKENS", "--threads", "1"], "--write-kubernetes wants --isa, one that all your nodes have"),
    (["READY", "--isa", "sse2"], "--isa is sse2, expected one of portable, avx2"),
    (["READY", "--host", "127.0.0.2"], "--host was given with --write-kubernetes, which has no use for it"),
    (["READY", "--write-triton", "x"], "--write-triton was given with --write-kubernetes"),
    (["READY", "--write-kserve", "x"], "got --write-kubernetes and --write-kserve, expected one of them"),
    (["READY", "--certificate", "c.pem", "--key", "k.pem"], "--certificate c.pem is not there"),
    (["READY", "--proof", "p.json"], "--proof p.json is not there"),
    (["READY", "--name", "---"], "--name is '---', expected one that begins with a letter"),
    (["READY", "--claim", "No Claim"], "--claim is 'No Claim', expected the name of a PersistentVolumeClaim"),
    (["READY", "--image", ""], "--image is '', expected the name of a container image"),
    (["READY", "--memory-gib", "0"], "--memory-gib is 0, expected GiB above 0"),
    (["READY", "--replicas", "0"], "--replicas is 0, expected at least 1"),
    (["READY", "--replicas", "3", "--max-replicas", "2"], "--max-replicas is 2, expected at least 3"),
    (["READY", "--prometheus", "prometheus"], "--prometheus is 'prometheus', expected a URL"),
    (["READY", "--prometheus", "http://me:word@there"], "--prometheus holds a user or password"),
    (["READY", "--otel-endpoint", "http://me:word@there"], "--otel-endpoint holds a user or password"),
    (["READY", "--port", "9400"], "--port is 9400 and --metrics-port 9400, expected two different ones above 0"),
    (["READY", "--max-batch", "0"], "--max-batch is 0, expected at least 1"),
]


@pytest.mark.parametrize(("options", "message"), NO_MANIFEST, ids=[" ".join(o) or "none" for o, _ in NO_MANIFEST])
def test_what_a_pod_cannot_do_is_refused_in_one_line(tiny_record_path, tmp_path, options, message):
    tokens, out = tmp_path / "tokens", tmp_path / "out.yaml"
    tokens.write_text("a-token-of-one-client\n")
    ready = ["--token-file", tokens, "--threads", 1, *([] if "--isa" in options else ["--isa", "avx2"])]
    given = [x for o in options for x in (ready if o == "READY" else [tokens if o == "TOKENS" else o])]
    done = command("serve", "--engine", tiny_record_path, "--write-kubernetes", out, *given)
    assert done.code == 2
    assert message in done.err
    assert "word" not in done.err.replace("password", "")
    assert len(done.err.strip().splitlines()) == 1
    assert not out.exists()


def test_two_files_of_one_name_are_not_mixed_up(tiny_record_path, tmp_path):
    tokens, other = tmp_path / "tokens", tmp_path / tiny_record_path.name
    tokens.write_text("a-token-of-one-client\n")
    other.write_bytes(b"another record")
    given = ["--ckpt", other, "--token-file", tokens, "--threads", 1, "--isa", "avx2"]
    done = command("serve", "--engine", tiny_record_path, "--write-kserve", tmp_path / "out.yaml", *given)
    assert done.code == 2
    assert f"are both named {other.name}, expected different names" in done.err


def test_a_manifest_is_written_and_says_what_must_be_there(tiny_record_path, tmp_path):
    tokens, out = tmp_path / "tokens", tmp_path / "out.yaml"
    tokens.write_text("a-token-of-one-client\n")
    given = ["--name", "digits", "--token-file", tokens, "--threads", 1, "--isa", "avx2", "--write-kserve", out]
    done = command("serve", "--engine", tiny_record_path, *given)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"written {out}: InferenceService, PodDisruptionBudget, ScaledObject\n")
    assert "kubectl create secret generic digits-tokens --from-file=tokens=TOKENS_FILE" in done.out
    assert out.read_text().startswith("# dq-serve ")
    assert "a-token-of-one-client" not in out.read_text() + done.out
