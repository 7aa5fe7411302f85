"""`dq-serve`: a quantized model behind a port."""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from dq_deploy.cli.frame import refuse, run, warn
from dq_deploy.cli.frame.arguments import takes
from dq_deploy.cli.text.serve_arguments import ServeArguments
from dq_deploy.cli.text.serve_manifest import check_no_manifest

if TYPE_CHECKING:
    from dq_deploy.serve import Served
    from dq_deploy.serve.card import ModelCard
    from dq_deploy.serve.web.port import Port

TRACE_PACKAGES = ("opentelemetry",)
PACKAGES = ("fastapi", "uvicorn", "httptools", "multipart", "prometheus_client")


@takes(ServeArguments)
def serve(given: ServeArguments) -> None:
    """Serve pictures of a quantized model: OpenAI's images API, KServe V2, a page to try it."""
    _check_options(given)
    if given.write_kubernetes is not None or given.write_kserve is not None:
        _write_manifest(given)
        return
    check_no_manifest(given)
    if given.write_triton is not None:
        _write_triton(given, given.write_triton)
        return
    _check_packages(traces=given.otel_endpoint is not None)
    served, tokens, port = _served(given), _tokens(given), _port(given)
    refuse(
        not port.is_loopback and not tokens,
        f"--host {given.host} is reached from other machines, expected --token-file, so that not everybody may ask",
    )
    from dq_deploy.serve.web.port import bound_socket, check_certificate

    check_certificate(port)
    _log_lines()
    with bound_socket(port) as listener, ExitStack() as stack:
        metrics = None  # a port that is taken is said before anything heavy is imported or read
        if given.metrics_port is not None:
            from dq_deploy.serve.telemetry.metrics import metrics_on

            _, metrics = stack.enter_context(metrics_on(given.host, given.metrics_port))
        from dq_deploy.serve.opening import open_service
        from dq_deploy.serve.web.access import Access
        from dq_deploy.serve.web.app import create_app
        from dq_deploy.serve.web.running import serve_on

        access = Access(tokens=tokens, log_prompts=given.log_prompts)
        service = stack.enter_context(open_service(served))
        if given.otel_endpoint is not None:
            from dq_deploy.serve.telemetry.tracing import traces_over_http

            traces = traces_over_http(given.otel_endpoint, model=service.card.name)
            stack.callback(traces.close)
            service.watchers.append(traces.ended)
        if metrics is not None:
            metrics.register(service.metrics.registry)
        _say(service.card, given, listener.getsockname()[1])
        serve_on(create_app(service, access), service, port, listener)


def _check_options(given: ServeArguments) -> None:
    refuse(not 0 <= given.port <= 65535, f"--port is {given.port}, expected 0 to 65535")
    port = given.metrics_port
    refuse(
        port is not None and (not 0 <= port <= 65535 or port == given.port != 0),
        f"--metrics-port is {port}, expected 0 to 65535 and another one than --port",
    )
    refuse(not 0 <= given.drain <= 3600, f"--drain is {given.drain:g}, expected 0 to 3600 seconds")
    where = given.otel_endpoint
    wrong = where is not None and not where.startswith(("http://", "https://"))
    refuse(wrong, f"--otel-endpoint is {where}, expected a URL as http://127.0.0.1:4318/v1/traces")
    one = (given.certificate is None) != (given.key is None)
    refuse(one, "got one of --certificate and --key, expected both: HTTPS takes both")


def _check_packages(*, traces: bool) -> None:
    from dq_deploy.errors import MissingDependencyError

    for extra, names in (("serve", PACKAGES), ("otel", TRACE_PACKAGES if traces else ())):
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        if missing:
            raise MissingDependencyError(f"dq-serve needs {', '.join(missing)}; pip install 'dq-deploy[{extra}]'")


_OF_A_SERVER = (
    "ckpt",
    "steps",
    "threads",
    "device",
    "attention",
    "proof",
    "isa",
    "metrics_port",
    "token_file",
    "certificate",
    "key",
    "otel_endpoint",
    "host",
    "port",
    "queue",
    "time_limit",
    "drain",
    "log_prompts",
)
"""Options that a model repository has no use for."""


def _write_triton(given: ServeArguments, out: Path) -> None:
    from dq_deploy.serve.triton import write_triton_repository

    usual = {field.name: field.default for field in fields(given)}
    for name in _OF_A_SERVER:
        flag = f"--{name.replace('_', '-')}"
        refuse(getattr(given, name) != usual[name], f"{flag} was given with --write-triton, which has no use for it")
    named = given.name or re.sub(r"[^A-Za-z0-9_.-]", "_", (given.model or given.engine).resolve().stem)
    written = write_triton_repository(
        out,
        model=given.model,
        engine=given.engine,
        name=named,
        component=given.component,
        scheduler=given.scheduler,
        max_batch=given.max_batch,
        torch_threads=given.pipeline_threads,
        hash_check=given.hash_check,
    )
    if written.not_batched:
        warn(f"requests are not joined: {written.not_batched}")
    print(f"written {written.path}: {written.denoiser} (one step), {written.loop} (pictures)")
    print(f"{written.loop} takes {', '.join(written.inputs)} and gives {written.output}")
    print(f"its python needs {' '.join(written.requirements)}")


def _write_manifest(given: ServeArguments) -> None:
    from dq_deploy.cli.frame.outputs import check_outputs
    from dq_deploy.cli.text.serve_manifest import pod_options
    from dq_deploy.serve.kubernetes.manifests import kserve_documents, kubernetes_documents, write_manifest

    _check_packages(traces=False)
    found = pod_options(given)
    kserve = given.write_kserve is not None
    out = given.write_kserve or given.write_kubernetes
    assert out is not None
    check_outputs(out, inputs=[given.engine, given.model, given.ckpt, given.proof, given.token_file])
    documents = (kserve_documents if kserve else kubernetes_documents)(found.replica, found.scaling)
    write_manifest(out, documents, found.head)
    if not found.alike:
        warn(
            "no instruction set is asked of the nodes: on nodes of several kinds the same request may give other bytes"
        )
    print(f"written {out}: {', '.join(one['kind'] for one in documents)}")
    print("\n".join(found.head))


def _served(given: ServeArguments) -> Served:
    from dq_deploy.serve import Limits, Served

    return Served(
        engine=given.engine,
        model=given.model,
        ckpt=given.ckpt,
        name=given.name,
        component=given.component,
        scheduler=given.scheduler,
        steps=given.steps,
        threads=given.threads,
        isa=given.isa,
        device=given.device,
        attention=given.attention,
        pipeline_threads=given.pipeline_threads,
        proof=given.proof,
        hash_check=given.hash_check,
        limits=Limits(
            max_batch=given.max_batch, instances=given.instances, queue=given.queue, time_limit_s=given.time_limit
        ),
    )


def _tokens(given: ServeArguments) -> tuple[str, ...]:
    from dq_deploy.serve.web.tokens import read_tokens

    return () if given.token_file is None else read_tokens(given.token_file)


def _port(given: ServeArguments) -> Port:
    from dq_deploy.serve.web.port import Port

    return Port(
        host=given.host,
        port=given.port,
        certificate=given.certificate,
        key=given.key,
        drain_seconds=given.drain,
    )


def _log_lines() -> None:
    """Log lines of this package and of uvicorn's errors, on stderr as they are."""
    handler = logging.StreamHandler(sys.stderr)
    for name, level in (("dq_deploy.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def _say(card: ModelCard, given: ServeArguments, port: int) -> None:
    """Where it is served, and what does not hold."""
    if not (card.same_bytes.holds and card.same_bytes.proven):
        warn(f"an answer may depend on what else is served: {card.same_bytes.how}")
    kind = "http" if given.certificate is None else "https"
    host = f"[{given.host}]" if ":" in given.host else given.host
    print(f"serving {card.name} ({card.engine_version}) on {kind}://{host}:{port}", flush=True)


def main() -> None:
    """Entry of the console script."""
    run(serve)


if __name__ == "__main__":
    main()
