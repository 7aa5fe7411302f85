"""Starts and stops `examples/ray_serve.py` with the Python that has Ray."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import psutil

PYTHON = "DQ_RAY_PYTHON"
ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-these-tests"
_MARK = "DQ_RAY_TEST"


@dataclass(frozen=True, kw_only=True)
class RayServer:
    """A running server; `mark` stands in the environment of each of its processes."""

    process: subprocess.Popen
    port: int
    mark: str

    @contextmanager
    def asked(
        self, method: str, path: str, body: Any = None, token: str | None = TOKEN
    ) -> Iterator[tuple[HTTPConnection, HTTPResponse]]:
        """A connection and the head of the answer, whose body is not read yet."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            yield connection, connection.getresponse()

    def send(self, method: str, path: str, body: Any = None, token: str | None = TOKEN) -> tuple[int, Any]:
        """Status and the answer, as JSON where it is."""
        with self.asked(method, path, body, token) as (_, response):
            answer = response.read()
            is_json = response.headers.get("content-type", "").startswith("application/json")
            return response.status, json.loads(answer) if is_json else answer.decode()

    def requests(self) -> list[dict[str, Any]]:
        """Those of all replicas that are not over."""
        status, answer = self.send("GET", "/v1/requests")
        assert status == 200
        return answer["data"]

    def counted(self, name: str, **labels: str) -> dict[str, float]:
        """A number of each replica, by the replica's id."""
        status, text = self.send("GET", "/metrics")
        assert status == 200
        found: dict[str, float] = {}
        for line in text.splitlines():
            match = re.fullmatch(rf"{name}\{{(.*)\}} (\S+)", line)
            if match and all(f'{key}="{value}"' in match[1] for key, value in labels.items()):
                replica = re.search(r'replica="(\w+)"', match[1])
                assert replica is not None
                found[replica[1]] = float(match[2])
        return found

    def processes(self) -> list[psutil.Process]:
        """All that belong to it, those too whose parent is gone."""
        return [one for one in psutil.process_iter() if _environment(one).get(_MARK) == self.mark]

    def replicas(self) -> list[psutil.Process]:
        """The processes of the replicas."""
        return [one for one in self.processes() if "ServeReplica" in _title(one)]


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
    except (psutil.Error, OSError):
        return {}


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.Error, OSError):
        return ""


@contextmanager
def ray_server(python: str, port: int, *options: str) -> Iterator[RayServer]:
    """Run it until the block ends; what is left of it then is killed. Ray's files stay below a folder of its own."""
    home = tempfile.mkdtemp(prefix="dq-ray-", dir="/tmp")  # Ray's sockets need a short path
    environment = dict(os.environ) | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
        "HOME": home,  # Ray writes its token there
        "RAY_TMPDIR": home,
        _MARK: home,
    }
    command = [python, str(ROOT / "examples" / "ray_serve.py"), "--port", str(port), *options]
    log = Path(home) / "log.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, start_new_session=True)
    server = RayServer(process=process, port=port, mark=home)
    try:
        end = time.monotonic() + 240
        while "\nserving " not in log.read_text():
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(0.2)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        for one in server.processes():
            with contextlib.suppress(psutil.Error):
                one.kill()
        process.wait(20)
        shutil.rmtree(home, ignore_errors=True)


class Load:
    """Clients that ask for pictures one after another until they are told to stop."""

    def __init__(self, server: RayServer, bodies: list[dict[str, Any]], clients: int) -> None:
        self.server, self.bodies = server, bodies
        self.answers: list[tuple[int, int, Any, float]] = []  # index of the body, status, answer, seconds
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)

    def _ask(self, index: int) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                found = self.server.send("POST", "/v1/images/generations", self.bodies[index % len(self.bodies)])
            except OSError as error:
                found = (0, repr(error))
            self.answers.append((index % len(self.bodies), *found, time.monotonic() - begun))
            index += 1
