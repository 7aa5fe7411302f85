"""Small models behind a real server, for clients of KServe."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import pytest
from tritonclient.http import InferenceServerClient

if TYPE_CHECKING:
    from dq_deploy.serve.service import Service


@dataclass(frozen=True)
class Reply:
    """What a server answered; header names in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Server:
    """A server that listens.

    Attributes:
        host: of its address.
        port: likewise.
        service: behind it.
        triton: NVIDIA's client of it.
    """

    host: str
    port: int
    service: Service
    triton: InferenceServerClient

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """Send a request; a body that is not bytes goes as JSON."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        connection = HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def infer(self, model: str, body: dict[str, Any], status: int = 200) -> Any:
        """Answer to a body of JSON."""
        reply = self.ask("POST", f"/v2/models/{model}/infer", body)
        assert reply.status == status, reply.body
        return reply.json

    def refusal(self, model: str, body: dict[str, Any], status: int = 400) -> str:
        """Why a body of JSON is refused."""
        found = self.infer(model, body, status)
        assert list(found) == ["error"]
        return found["error"]


@contextmanager
def serving(**served: object) -> Iterator[Server]:
    """A server in a thread of this process."""
    import uvicorn

    from dq_deploy.serve.opening import Served, open_service
    from dq_deploy.serve.web.app import create_app
    from dq_deploy.serve.web.running import Port, bound_socket

    with open_service(Served(**served, threads=1)) as service, bound_socket(Port(port=0)) as listener:
        config = uvicorn.Config(create_app(service), lifespan="off", log_config=None, timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        host, port = listener.getsockname()
        triton = InferenceServerClient(f"{host}:{port}", concurrency=4)
        try:
            yield Server(host, port, service, triton)
        finally:
            triton.close()
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def labels(tmp_path_factory):
    """Of a denoiser with ten classes and no pipeline."""
    from dq_deploy import save_record
    from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

    path = tmp_path_factory.mktemp("labels") / "digits.pt"
    save_record(random_record(tiny_denoiser(classes=10, **ONE_LEVEL), weight_bits=8), path)
    with serving(engine=path) as server:
        yield server


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """Of a text-to-image pipeline."""
    pytest.importorskip("transformers")
    from dq_deploy import save_record
    from tests.pipelines.tiny_pipelines import tiny_text_pipeline
    from tests.tiny import random_record, tiny_conditional_denoiser

    folder = tmp_path_factory.mktemp("text")
    denoiser = tiny_conditional_denoiser()
    tiny_text_pipeline(unet=denoiser.module).save_pretrained(folder / "tiny")
    save_record(random_record(denoiser, weight_bits=8), folder / "model.pt")
    with serving(model=folder / "tiny", engine=folder / "model.pt") as server:
        yield server
