"""`dq-serve` in a pod: its command line and its files there, and what the manifest's head says to do first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum, auto
from pathlib import Path
from typing import Any

from dq_deploy.cli.frame import refuse
from dq_deploy.cli.text.serve_arguments import ServeArguments
from dq_deploy.errors import FileProblemError
from dq_deploy.manifest.plan import is_plan
from dq_deploy.open_engine import NATIVE_SUFFIXES
from dq_deploy.serve.kubernetes.replica import CERTIFICATE, FILES, TOKENS, Replica, kubernetes_name
from dq_deploy.serve.kubernetes.scaling import Scaling, check_url
from dq_deploy.version import __version__

REPLICAS = 2
MOST_WITH_KSERVE = 10
METRICS_PORT = 9400
PROMETHEUS = "http://prometheus-server.monitoring.svc"
BASE_GIB = 1.0
"""Memory of a server besides its files: Python, torch and diffusers."""


class Goes(Enum):
    """Where an option goes when a manifest is written."""

    ARGUMENT = auto()  # as it is, to the container's command line
    FILE = auto()  # likewise, as a path in the volume
    SECRET = auto()  # its file's content is in a secret, which is mounted
    POD = auto()  # says something of the pod, and is on its command line where it has one
    MANIFEST = auto()  # of the manifest alone
    REFUSED = auto()  # has no meaning there


GOES: Mapping[str, Goes] = {
    **dict.fromkeys(("engine", "model", "ckpt", "proof"), Goes.FILE),
    **dict.fromkeys(
        ("component", "scheduler", "steps", "max_batch", "instances", "queue", "time_limit", "threads", "isa"),
        Goes.ARGUMENT,
    ),
    **dict.fromkeys(
        ("pipeline_threads", "device", "attention", "drain", "log_prompts", "otel_endpoint", "hash_check"),
        Goes.ARGUMENT,
    ),
    **dict.fromkeys(("token_file", "certificate", "key"), Goes.SECRET),
    **dict.fromkeys(("name", "port", "metrics_port"), Goes.POD),
    **dict.fromkeys(
        ("replicas", "max_replicas", "image", "claim", "memory_gib", "prometheus", "write_kubernetes", "write_kserve"),
        Goes.MANIFEST,
    ),
    **dict.fromkeys(("host", "write_triton"), Goes.REFUSED),
}
"""Each option of `dq-serve`; a test holds this against the list of them, so that none is dropped."""

_SECRETS = {
    "token_file": f"{TOKENS}/tokens",
    "certificate": f"{CERTIFICATE}/tls.crt",
    "key": f"{CERTIFICATE}/tls.key",
}


@dataclass(frozen=True, kw_only=True)
class PodOptions:
    """What the given options come to.

    Attributes:
        replica: what each pod runs.
        scaling: how many there are.
        head: lines for the top of the manifest: what must be there before it is applied.
        alike: whether its nodes are pinned to one instruction set.
    """

    replica: Replica
    scaling: Scaling
    head: tuple[str, ...]
    alike: bool


def flag(name: str) -> str:
    """Of an option."""
    return f"--{name.replace('_', '-')}"


def usual(name: str) -> Any:
    """Value of an option that was not given."""
    return next(field.default for field in fields(ServeArguments) if field.name == name)


def check_no_manifest(given: ServeArguments) -> None:
    """Refuse the options of a manifest where none is written.

    Raises:
        OptionError: names one.
    """
    for name in ("replicas", "max_replicas", "image", "claim", "memory_gib", "prometheus"):
        refuse(
            getattr(given, name) is not None,
            f"{flag(name)} was given without --write-kubernetes or --write-kserve, which it is for",
        )


def pod_options(given: ServeArguments) -> PodOptions:
    """What is to stand in a manifest.

    Raises:
        OptionError: an option has no meaning in a pod, or one is missing there.
        FileProblemError: a file is not there.
    """
    _check(given)
    name = kubernetes_name(given.name or (given.model or given.engine).resolve().stem)
    files = _files(given)
    _check_isa(given)
    assert given.threads is not None
    gpus = given.instances if given.device == "cuda" or is_plan(given.engine) else 0
    replica = Replica(
        name=name,
        image=f"dq-deploy:{__version__}" if given.image is None else given.image,
        arguments=_arguments(given, files, name),
        port=given.port,
        metrics_port=_metrics_port(given),
        cores=max(given.instances * given.threads, given.pipeline_threads),
        memory_gib=given.memory_gib if given.memory_gib is not None else _memory_gib(given),
        memory_limit=given.memory_gib is not None,
        gpus=gpus,
        isa=given.isa,
        claim=f"{name}-models" if given.claim is None else given.claim,
        tokens=f"{name}-tokens",
        certificate=None if given.certificate is None else f"{name}-tls",
        drain_s=given.drain,
        time_limit_s=given.time_limit,
    )
    least = given.replicas if given.replicas is not None else REPLICAS
    most = given.max_replicas
    if most is None:
        most = max(least, MOST_WITH_KSERVE) if given.write_kserve is not None else least
    scaling = Scaling(
        least=least,
        most=most,
        requests=given.max_batch * given.instances,
        prometheus=PROMETHEUS if given.prometheus is None else given.prometheus,
    )
    return PodOptions(replica=replica, scaling=scaling, head=_head(given, replica, files), alike=given.isa is not None)


def _check(given: ServeArguments) -> None:
    """Refuse what has no meaning in a pod, and where something is missing there."""
    refuse(
        given.write_kubernetes is not None and given.write_kserve is not None,
        "got --write-kubernetes and --write-kserve, expected one of them",
    )
    where = "--write-kubernetes" if given.write_kserve is None else "--write-kserve"
    for name, goes in GOES.items():
        wrong = goes is Goes.REFUSED and getattr(given, name) != usual(name)
        refuse(wrong, f"{flag(name)} was given with {where}, which has no use for it")
    tls = given.write_kserve is not None and given.certificate is not None
    refuse(tls, "--certificate was given with --write-kserve, where the gateway ends TLS; leave it and --key out")
    missing = _missing(given)
    refuse(bool(missing), f"{where} wants {'; '.join(missing)}")
    if given.otel_endpoint is not None:
        check_url(given.otel_endpoint, "otel_endpoint")
    for name in ("token_file", "certificate", "key"):
        _there(getattr(given, name), name)
    from dq_deploy.serve import Limits, Served
    from dq_deploy.serve.web.tokens import read_tokens

    assert given.token_file is not None
    read_tokens(given.token_file)
    limits = Limits(
        max_batch=given.max_batch, instances=given.instances, queue=given.queue, time_limit_s=given.time_limit
    )
    Served(
        engine=given.engine,
        name=given.name,
        steps=given.steps,
        threads=given.threads,
        pipeline_threads=given.pipeline_threads,
        limits=limits,
    )


def _metrics_port(given: ServeArguments) -> int:
    return METRICS_PORT if given.metrics_port is None else given.metrics_port


def _missing(given: ServeArguments) -> list[str]:
    """What a manifest cannot do without and was not given, each with why: all of it, to be said at once."""
    from dq_kernels.cpu.structs import EMULATED, ISAS

    wanted: list[tuple[object, str]] = [
        (
            given.token_file,
            "--token-file, for a pod is reached from other machines, and its content goes into a secret",
        ),
        (given.threads, "--threads, for a pod must ask for that many cores"),
    ]
    if given.engine.suffix in NATIVE_SUFFIXES and given.device != "cuda":
        names = ", ".join(isa for isa in ISAS if isa != EMULATED)
        wanted.append((given.isa, f"--isa, one that all your nodes have, of {names}, so that replicas compute alike"))
    return [words for value, words in wanted if value is None]


def _check_isa(given: ServeArguments) -> None:
    """Refuse instructions that the engine cannot be told, or that are not known."""
    from dq_kernels.cpu.structs import EMULATED, ISAS

    names = ", ".join(isa for isa in ISAS if isa != EMULATED)
    native = given.engine.suffix in NATIVE_SUFFIXES
    refuse(
        given.isa is not None and not native,
        f"--isa is {given.isa} for {given.engine}, expected none: only the native engine can be told its own",
    )
    refuse(given.isa not in (None, *names.split(", ")), f"--isa is {given.isa}, expected one of {names}")


def _there(path: Path | None, name: str) -> None:
    if path is not None and not path.exists():
        raise FileProblemError(f"{flag(name)} {path} is not there, expected a file that exists")


def _files(given: ServeArguments) -> dict[str, Path]:
    """Option -> its file or folder; no two have one name, since all lie in one volume."""
    found: dict[str, Path] = {}
    for name, goes in GOES.items():
        path = getattr(given, name)
        if goes is not Goes.FILE or path is None:
            continue
        _there(path, name)
        path = path.resolve()
        other = next((o for o, p in found.items() if p.name == path.name and p != path), None)
        refuse(
            other is not None,
            f"{flag(name)} and {flag(other or '')} are both named {path.name}, expected different names: they lie in "
            "one volume",
        )
        found[name] = path
    return found


def _arguments(given: ServeArguments, files: Mapping[str, Path], name: str) -> tuple[str, ...]:
    """The command line in the container, in the order of the options."""
    found: list[str] = []
    for field in fields(ServeArguments):
        value, goes = getattr(given, field.name), GOES[field.name]
        if field.name in files:
            found += [flag(field.name), f"{FILES}/{files[field.name].name}"]
        elif goes is Goes.SECRET and value is not None:
            found += [flag(field.name), _SECRETS[field.name]]
        elif field.name == "name":
            found += ["--name", given.name or name, "--host", "0.0.0.0"]
        elif field.name == "port":
            found += ["--port", str(given.port)]
        elif field.name == "metrics_port":
            found += ["--metrics-port", str(_metrics_port(given))]
        elif goes is Goes.ARGUMENT and value != usual(field.name):
            if isinstance(value, bool):
                found.append(flag(field.name) if value else flag(f"no_{field.name}"))
            else:
                found += [flag(field.name), f"{value:g}" if isinstance(value, float) else str(value)]
    return tuple(found)


def _beside(path: Path) -> list[Path]:
    """An engine's file and those that lie beside it under its name, as its weights; of a folder the folder."""
    if path.is_dir():
        return [path]
    return sorted(p for p in path.parent.iterdir() if p == path or p.name.startswith(f"{path.name}."))


def _memory_gib(given: ServeArguments) -> float:
    """Of a replica, from sizes: each engine twice its files, since weights are packed; the pipeline's once."""
    engine = sum(path.stat().st_size for path in _beside(given.engine) if path.is_file())
    parts = [] if given.model is None else [p for p in given.model.rglob("*") if p.is_file()]
    held = 2 * given.instances * engine + sum(path.stat().st_size for path in parts)
    return BASE_GIB + held / 2**30


def _head(given: ServeArguments, replica: Replica, files: Mapping[str, Path]) -> tuple[str, ...]:
    """What must be there before the manifest is applied; names of files, and nothing of what secret ones hold."""
    names = sorted({p.name for name, path in files.items() for p in (_beside(path) if name == "engine" else [path])})
    lines = [
        f"dq-serve {__version__} as {replica.name}. Before it is applied there must be:",
        f"- the image {replica.image}",
        f"- a PersistentVolumeClaim {replica.claim} that holds: {', '.join(names)}",
        f"- the tokens: kubectl create secret generic {replica.tokens} --from-file=tokens=TOKENS_FILE",
    ]
    if replica.certificate is not None:
        lines.append(f"- the certificate: kubectl create secret tls {replica.certificate} --cert=CERT --key=KEY")
    if given.isa is not None and replica.pod(container="x", labels={}).get("affinity"):
        lines.append(
            "- labels of Node Feature Discovery on the nodes, by which those with the instruction set are found"
        )
    lines.append("Pods answer alike on nodes of one kind only; docs/serving.md says what that is.")
    return tuple(lines)
