"""The image server on several processes or machines, as a deployment of Ray Serve.

    pip install -c constraints.txt -e '.[serve,pipelines,ray]'
    python examples/ray_serve.py --model examples/emoji-text-to-image --engine demo-out/prompt.pt --replicas 2

Each replica opens the model and serves the whole application; Ray starts, watches and replaces replicas, and sends each
request to one of them. With Ray's own commands, as on a cluster whose machines all have these files:

    serve run --app-dir examples ray_serve:build model=PIPELINE engine=ENGINE replicas=2
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import ray
from fastapi import APIRouter, Response
from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import cloudpickle, serve
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dq_deploy.errors import DqError
from dq_deploy.serve import Limits, Served
from dq_deploy.serve.opening import open_service
from dq_deploy.serve.service import Service
from dq_deploy.serve.steps import EngineCall
from dq_deploy.serve.telemetry.metrics import CONTENT_TYPE
from dq_deploy.serve.web.access import Access
from dq_deploy.serve.web.app import create_app
from dq_deploy.serve.web.errors import ApiError
from dq_deploy.serve.web.requests import standing_json
from dq_deploy.serve.web.running import LOOPBACK
from dq_deploy.serve.web.tokens import read_tokens

ANSWER_SECONDS = 5.0
"""That the other replicas have to say something of their requests."""


class Options(BaseModel):
    """What is served, and by how many."""

    model_config = ConfigDict(extra="forbid")

    engine: Path = Field(description="record, exported ONNX file or plan")
    model: Path | None = Field(None, description="folder of the pipeline; left out, the denoiser alone draws")
    replicas: int = Field(1, ge=1, description="replicas, each with the model of its own")
    max_replicas: int | None = Field(None, ge=1, description="as many as Ray may start under load; left out, no more")
    cpus: float = Field(1.0, gt=0, description="cores that Ray keeps for a replica")
    threads: int | None = Field(None, ge=1, description="of a replica's engine; left out, as many as its cores")
    max_batch: int = Field(8, ge=1, description="samples of one call of a replica's engine")
    queue: int = Field(256, ge=1, description="pictures that may wait at a replica")
    time_limit: float = Field(300.0, gt=0, description="seconds a request may take")
    drain: float = Field(30.0, ge=0, description="seconds that requests have to finish when a replica is stopped")
    token_file: Path | None = Field(None, description="file with one token a line, of which a request brings one")


@serve.deployment(name="images")
@serve.ingress()
class Replica:
    """One replica: a service, its application, and what it tells the other replicas."""

    def __init__(self, served: Served, access: Access) -> None:
        self.access, self._stack = access, ExitStack()
        self.service = self._stack.enter_context(open_service(served))
        self.pulse = Pulse(self.service)
        here = serve.get_replica_context()
        self.id = here.replica_id.unique_id
        self.all = serve.get_deployment_handle(here.deployment, here.app_name)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app = create_app(self.service, self.access)
        ours = of_all_replicas(self)
        app.router.routes[:0] = ours.routes  # in front of those which know this replica alone
        return OwnId(app)

    def check_health(self) -> None:
        """Ray asks every ten seconds, and puts another replica in the place of one that raises three times."""
        self.pulse.check()

    async def drain(self, seconds: float) -> None:
        """Take no more requests, and wait until those that are there are done, at most so long."""
        self.service.stop_taking()
        await run_in_threadpool(self.service.wait_until_idle, seconds)
        self.service.end_all()

    def cancel(self, request_id: str) -> bool:
        """End a request if this replica has it."""
        return self.service.cancel(request_id)

    def requests(self) -> list[dict[str, object]]:
        """The requests of this replica."""
        return [{**standing_json(standing), "replica": self.id} for standing in self.service.standings()]

    def metrics(self) -> tuple[str, str]:
        """Its id, and its counts and times."""
        return self.id, self.service.metrics.text().decode()

    def __del__(self) -> None:
        """Ray calls it when the replica's requests are done, or their time is up."""
        if hasattr(self, "_stack"):
            self._stack.close()


class Pulse:
    """Whether a service gets on: where requests run, the engine is called in the time that one request may take."""

    def __init__(self, service: Service) -> None:
        self.service, self.last = service, time.monotonic()
        service.metrics.listeners.append(self.beat)

    def beat(self, call: EngineCall) -> None:
        """The engine was called."""
        self.last = time.monotonic()

    def check(self) -> None:
        """Raise where the engine hangs."""
        if all(standing.order.started_at is None for standing in self.service.standings()):
            self.last = time.monotonic()
        silent = time.monotonic() - self.last
        if silent > self.service.limits.time_limit_s:
            raise RuntimeError(f"requests run, but the engine was not called for {silent:.0f} s")


class OwnId:
    """Ray gives each answer a header x-request-id of its own; that of the server goes into dq-request-id."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def renamed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if "x-request-id" in headers:
                    headers["dq-request-id"] = headers["x-request-id"]
                    del headers["x-request-id"]
            await send(message)

        await self.app(scope, receive, renamed)


def of_all_replicas(replica: Replica) -> APIRouter:
    """The paths whose answers need every replica, for a request may be at any of them."""
    router = APIRouter()

    async def asked(method: str, *given: str) -> tuple[list[object], bool]:
        """What the replicas answer, and whether all did."""
        try:
            found = await replica.all.broadcast(method, *given).results_async(
                timeout_s=ANSWER_SECONDS, return_exceptions=True
            )
        except TimeoutError as error:
            raise ApiError(503, "a replica does not answer; ask again later", retry_after=1) from error
        answers = [one for one in found if not isinstance(one, Exception)]
        return answers, len(answers) == len(found)

    @router.get("/v1/requests")
    async def requests() -> dict[str, object]:
        """The requests of all replicas; a position is that in the replica's own queue."""
        answers, _ = await asked("requests")
        entries = [entry for answer in answers for entry in answer]
        running = sum(entry["running_s"] is not None for entry in entries)
        return {"object": "list", "running": running, "waiting": len(entries) - running, "data": entries}

    @router.delete("/v1/requests/{request_id}")
    async def cancel(request_id: str) -> dict[str, object]:
        """End a request, whichever replica has it."""
        answers, complete = await asked("cancel", request_id)
        if any(answers):
            return {"id": request_id, "object": "request", "cancelled": True}
        if not complete:
            raise ApiError(503, "a replica does not answer; ask again later", retry_after=1)
        message = f"there is no request {request_id[:60]!r}; it may be over"
        raise ApiError(404, message, param="request_id", code="request_not_found")

    @router.get("/metrics")
    async def metrics() -> Response:
        """Counts and times of all replicas, told apart by the label `replica`."""
        answers, _ = await asked("metrics")
        return Response(labelled(answers), media_type=CONTENT_TYPE)

    return router


def labelled(texts: Iterable[tuple[str, str]]) -> bytes:
    """Prometheus' texts of several replicas as one; texts are pairs of a replica's id and its text."""
    families: dict[str, Metric] = {}
    for replica, text in texts:
        for found in text_string_to_metric_families(text):
            family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
            for sample in found.samples:
                family.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
    return generate_latest(Families(families.values()))


class Families:
    """What `generate_latest` takes for a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """All of them."""
        return self._families


def build(given: Options | dict[str, str]) -> serve.Application:
    """The application for `serve run`, which gives words, and `serve.run`; paths must be the same on each machine."""
    given = given if isinstance(given, Options) else Options.model_validate(given)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas find the library, but not this file
    served = Served(
        engine=given.engine.resolve(),
        model=None if given.model is None else given.model.resolve(),
        threads=given.threads or max(1, int(given.cpus)),
        limits=Limits(max_batch=given.max_batch, queue=given.queue, time_limit_s=given.time_limit),
    )
    access = Access(tokens=() if given.token_file is None else read_tokens(given.token_file))
    most = max(given.replicas, given.max_replicas or 0)
    number: dict[str, object] = {"num_replicas": given.replicas}
    if most > given.replicas:
        scaling = {"min_replicas": given.replicas, "max_replicas": most, "target_ongoing_requests": given.max_batch}
        number = {"autoscaling_config": scaling}
    deployment = Replica.options(
        **number,
        ray_actor_options={"num_cpus": given.cpus},
        # the replica's own queue is the smaller one, so that its 429 comes before Ray makes requests wait
        max_ongoing_requests=served.limits.most + served.limits.queue + 64,
        max_queued_requests=given.queue,
        graceful_shutdown_timeout_s=given.drain,
        max_constructor_retry_count=2,
    )
    return deployment.bind(served, access)


def parser() -> argparse.ArgumentParser:
    """Options of `build`, and where to listen."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, field in Options.model_fields.items():
        default = None if field.is_required() else field.default
        found.add_argument(
            f"--{name.replace('_', '-')}", required=field.is_required(), default=default, help=field.description
        )
    found.add_argument("--host", default="127.0.0.1", help="other ones than loopback need --token-file")
    found.add_argument("--port", type=int, default=8000)
    found.add_argument("--address", help="of a Ray cluster that runs, as `auto`; left out, one is started here")
    return found


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    arguments = parser()
    given = arguments.parse_args()
    if given.host not in LOOPBACK and given.token_file is None:
        arguments.error(f"--host {given.host} is reached from other machines, expected --token-file")
    for name in ("engine", "model", "token_file"):
        path = getattr(given, name)
        if path is not None and not Path(path).exists():
            arguments.error(f"--{name.replace('_', '-')} {path} is not there")
    try:
        options = Options(**{name: getattr(given, name) for name in Options.model_fields})
        application = build(options)
    except ValidationError as error:
        first = error.errors()[0]
        arguments.error(f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg']}")
    except DqError as error:
        arguments.error(str(error))
    _set_environment(options.time_limit)
    stop = threading.Event()
    if given.address is None:
        ray.init(include_dashboard=False, object_store_memory=200 * 2**20)
    else:
        ray.init(address=given.address)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        serve.start(http_options={"host": given.host, "port": given.port})
        serve.run(application, name="images", route_prefix="/")
        print(f"serving on http://{given.host}:{given.port}, replicas: {options.replicas}", flush=True)
        stop.wait()
        _drain(options.drain)
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    finally:
        serve.shutdown()
        ray.shutdown()


def _set_environment(limit_s: float) -> None:
    """Of Ray's processes, which are started with it: requests of a lost replica are asked again by ray_ask_again.py."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers of its use
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "ray_ask_again:middlewares")
    os.environ.setdefault("DQ_SERVE_TIME_LIMIT", f"{limit_s:g}")
    here = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))


def _drain(seconds: float) -> None:
    """Let requests finish: new ones get 503. Then the replicas end, each behind the answers that it still sends."""
    try:
        serve.get_app_handle("images").broadcast("drain", seconds).results(timeout_s=seconds + ANSWER_SECONDS)
    except Exception as error:
        print(f"warning: a replica did not finish its requests ({error})", file=sys.stderr)
    serve.delete("images")


if __name__ == "__main__":
    main()
