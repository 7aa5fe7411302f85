"""Small models behind a port, for clients of KServe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from tritonclient.http import InferenceServerClient

if TYPE_CHECKING:
    from dq_deploy.serve.service import Service


@dataclass(frozen=True)
class Server:
    """A server that listens.

    Attributes:
        port: where.
        service: behind it.
        triton: NVIDIA's client of it.
    """

    port: int
    service: Service
    triton: InferenceServerClient

    def infer(self, model: str, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Any:
        """Answer to an infer request."""
        from tests.serve.live import send

        found, _, answer = send(self.port, "POST", f"/v2/models/{model}/infer", body, headers)
        assert found == status, answer
        return answer

    def refusal(self, model: str, body: Any, status: int = 400, headers: dict[str, str] | None = None) -> str:
        """Why an infer request is refused, in one line."""
        found = self.infer(model, body, status, headers)
        assert list(found) == ["error"]
        assert "\n" not in found["error"]
        return found["error"]


@contextmanager
def serving(**served: Any) -> Iterator[Server]:
    """Open a model and serve it."""
    from dq_deploy.serve import Served
    from dq_deploy.serve.opening import open_service
    from tests.serve.live import live

    with open_service(Served(**served, threads=1)) as service, live(service) as port:
        client = InferenceServerClient(f"127.0.0.1:{port}", concurrency=4)
        try:
            yield Server(port, service, client)
        finally:
            client.close()


@pytest.fixture(scope="session")
def labels_record(made_once):
    """Of a denoiser with ten classes and no pipeline."""

    def make(path):
        from dq_deploy import save_record
        from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

        save_record(random_record(tiny_denoiser(classes=10, **ONE_LEVEL), weight_bits=8), path)

    return made_once("digits.pt", make)


@pytest.fixture(scope="session")
def labels(labels_record):
    """Draws what a label says."""
    with serving(engine=labels_record) as server:
        yield server


@pytest.fixture(scope="session")
def text(text_model):
    """Draws what a prompt says."""
    pytest.importorskip("transformers")
    with serving(model=text_model, engine=text_model / "model.pt") as server:
        yield server
