"""One replica of the image server as a pod of Kubernetes: its container, its files, where it may run, how it ends."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dq_deploy.errors import OptionError

FILES = "/models"
"""Where the volume with the model lies in the container."""

TOKENS = "/run/secrets/dq-tokens"
"""Folder of the secret's one key, `tokens`."""

CERTIFICATE = "/run/secrets/dq-tls"
"""Folder of `tls.crt` and `tls.key`, the keys of a secret of that type."""

LABELS_OF_ISA: Mapping[str, str] = {
    "avx2": "AVX2",
    "avx_vnni": "AVXVNNI",
    "avx512_vnni": "AVX512VNNI",
    "amx": "AMXINT8",
}
"""Instruction set of the native kernels -> the CPUID flag of Node Feature Discovery's label; others have none."""

LEAVES_SERVICE_SECONDS = 5
"""A pod that ends goes on taking requests so long, until every node has heard that it leaves the service."""

CLOSES_SECONDS = 10
"""Behind `drain`: connections are closed, and the process ends."""

STARTS_SECONDS = 600
"""That a replica may take to open its model and draw its first picture."""


@dataclass(frozen=True, kw_only=True)
class Replica:
    """What a pod runs. Nothing secret is in it: tokens and keys are named, not held.

    Attributes:
        name: of the deployment, as Kubernetes takes names; at most 40 characters, since others are made from it.
        image: of the container, which holds `dq-serve`.
        arguments: of `dq-serve` in the container.
        port: that it listens on.
        metrics_port: of the metrics alone.
        cores: that its engines compute on.
        memory_gib: that the scheduler keeps for it.
        memory_limit: whether it is ended where it takes more.
        gpus: that it asks for.
        isa: instruction set that its node must have; None where that is not known.
        claim: PersistentVolumeClaim with the model's files.
        tokens: name of the secret with the tokens; None where there is none.
        certificate: name of the secret with the certificate; None for plain HTTP.
        drain_s: seconds that requests have when it ends.
        time_limit_s: seconds that a request may take.
    """

    name: str
    image: str
    arguments: tuple[str, ...]
    port: int
    metrics_port: int
    cores: int
    memory_gib: float
    memory_limit: bool
    gpus: int
    isa: str | None
    claim: str
    tokens: str | None
    certificate: str | None
    drain_s: float
    time_limit_s: float

    def __post_init__(self) -> None:
        """Check what Kubernetes would refuse.

        Raises:
            OptionError: says what.
        """
        if self.port < 1 or self.metrics_port < 1 or self.port == self.metrics_port:
            raise OptionError(
                f"`port` is {self.port} and `metrics_port` {self.metrics_port}, expected two different ones above 0"
            )
        if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", self.claim):
            raise OptionError(f"`claim` is {self.claim!r}, expected the name of a PersistentVolumeClaim")
        if not self.image or re.search(r"\s", self.image):
            raise OptionError(f"`image` is {self.image!r}, expected the name of a container image")
        if not 0 < self.memory_gib < math.inf:
            raise OptionError(f"`memory_gib` is {self.memory_gib:g}, expected GiB above 0")

    @property
    def ends_within_s(self) -> int:
        """Seconds from the order to end until the process is killed: more than everything that it does in them."""
        return math.ceil(LEAVES_SERVICE_SECONDS + self.drain_s + CLOSES_SECONDS)

    @property
    def scheme(self) -> str:
        """Of its port."""
        return "HTTP" if self.certificate is None else "HTTPS"

    def scraped(self) -> dict[str, str]:
        """Annotations by which Prometheus finds the metrics."""
        return {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(self.metrics_port),
            "prometheus.io/path": "/metrics",
        }

    def pod(self, *, container: str, labels: Mapping[str, str]) -> dict[str, Any]:
        """The pod's specification.

        Args:
            container: name of the container.
            labels: of the pods that are to be spread over nodes.
        """
        found: dict[str, Any] = {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": self.ends_within_s,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": dict(labels)},
                }
            ],
            "containers": [self._container(container)],
            "volumes": self._volumes(),
        }
        terms = self._node_terms()
        if terms:
            selector = {"nodeSelectorTerms": [{"matchExpressions": terms}]}
            found["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": selector}}
        return found

    def _node_terms(self) -> list[dict[str, Any]]:
        """What a node must be labelled with, so that each replica computes with the same instructions."""
        if self.isa is None or self.isa not in LABELS_OF_ISA:
            return []
        flag = f"feature.node.kubernetes.io/cpu-cpuid.{LABELS_OF_ISA[self.isa]}"
        return [
            {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]},
            {"key": flag, "operator": "In", "values": ["true"]},
        ]

    def _container(self, name: str) -> dict[str, Any]:
        health = {"port": "http", "scheme": self.scheme}
        live, ready = {"path": "/v2/health/live", **health}, {"path": "/v2/health/ready", **health}
        return {
            "name": name,
            "image": self.image,
            "command": ["dq-serve"],
            "args": list(self.arguments),
            "ports": [
                {"name": "http", "containerPort": self.port, "protocol": "TCP"},
                {"name": "metrics", "containerPort": self.metrics_port, "protocol": "TCP"},
            ],
            "resources": self._resources(),
            "startupProbe": {"httpGet": dict(ready), "periodSeconds": 5, "failureThreshold": STARTS_SECONDS // 5},
            "readinessProbe": {"httpGet": dict(ready), "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 2},
            "livenessProbe": {"httpGet": live, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
            "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(LEAVES_SERVICE_SECONDS)]}}},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": self._mounts(),
        }

    def _resources(self) -> dict[str, Any]:
        memory = f"{math.ceil(1024 * self.memory_gib)}Mi"
        found: dict[str, Any] = {"requests": {"cpu": str(self.cores), "memory": memory}}
        limits = {"memory": memory} if self.memory_limit else {}
        if self.gpus:
            limits["nvidia.com/gpu"] = str(self.gpus)
        return found | ({"limits": limits} if limits else {})

    def _volumes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [
            {"name": "models", "persistentVolumeClaim": {"claimName": self.claim, "readOnly": True}},
            {"name": "tmp", "emptyDir": {}},
        ]
        for name, secret in (("tokens", self.tokens), ("tls", self.certificate)):
            if secret is not None:
                found.append({"name": name, "secret": {"secretName": secret, "defaultMode": 0o440}})
        return found

    def _mounts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [
            {"name": "models", "mountPath": FILES, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ]
        if self.tokens is not None:
            found.append({"name": "tokens", "mountPath": TOKENS, "readOnly": True})
        if self.certificate is not None:
            found.append({"name": "tls", "mountPath": CERTIFICATE, "readOnly": True})
        return found


def kubernetes_name(text: str) -> str:
    """A name that Kubernetes takes, from any: small letters, digits and dashes, at most 40 of them.

    Raises:
        OptionError: nothing is left of it.
    """
    found = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].rstrip("-")
    if not found or not found[0].isalpha():
        raise OptionError(f"`name` is {text!r}, expected one that begins with a letter: Kubernetes takes no other")
    return found
