"""The documents of a manifest: for plain Kubernetes, and for KServe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dq_deploy.artifacts import write_text_atomic
from dq_deploy.serve.kubernetes.replica import Replica
from dq_deploy.serve.kubernetes.scaling import Scaling, scaled_object

Document = dict[str, Any]


def kubernetes_documents(replica: Replica, scaling: Scaling) -> list[Document]:
    """A Deployment, its Service, a PodDisruptionBudget and, where the number of replicas may change, a ScaledObject.

    Args:
        replica: what each pod runs.
        scaling: how many there are.
    """
    name = replica.name
    own = {"app.kubernetes.io/name": "dq-serve", "app.kubernetes.io/instance": name}
    fixed = scaling.most == scaling.least
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": own},
        "spec": {
            # where KEDA counts them, a number here would be put in force each time the file is applied
            **({"replicas": scaling.least} if fixed else {}),
            "selector": {"matchLabels": own},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": {"labels": own, "annotations": replica.scraped()},
                "spec": replica.pod(container="dq-serve", labels=own),
            },
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": own},
        "spec": {
            "selector": own,
            "ports": [
                {
                    "name": replica.scheme.lower(),
                    "port": 80 if replica.scheme == "HTTP" else 443,
                    "targetPort": "http",
                    "protocol": "TCP",
                }
            ],
        },
    }
    found = [deployment, service, _budget(name, own)]
    if not fixed:
        found.append(scaled_object(name, deployment=name, pods=f"{name}-[0-9a-z]+-[0-9a-z]{{5}}", scaling=scaling))
    return found


def kserve_documents(replica: Replica, scaling: Scaling) -> list[Document]:
    """An InferenceService in the mode of plain deployments, a PodDisruptionBudget, and a ScaledObject on its pods.

    Args:
        replica: what each pod runs; TLS is the gateway's.
        scaling: how many there are.
    """
    name, deployment = replica.name, f"{replica.name}-predictor"
    own = {"serving.kserve.io/inferenceservice": name}
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "annotations": {
                "serving.kserve.io/deploymentMode": "RawDeployment",
                "serving.kserve.io/autoscalerClass": "external",
            },
        },
        "spec": {
            "predictor": {
                "annotations": replica.scraped(),
                "minReplicas": scaling.least,
                "maxReplicas": scaling.most,
                "timeout": int(replica.time_limit_s) + 1,
                "deploymentStrategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
                },
                **replica.pod(container="kserve-container", labels=own),
            }
        },
    }
    pods = f"{deployment}-[0-9a-z]+-[0-9a-z]{{5}}"
    return [
        service,
        _budget(deployment, own),
        scaled_object(deployment, deployment=deployment, pods=pods, scaling=scaling),
    ]


def _budget(name: str, labels: Mapping[str, str]) -> Document:
    """At most one replica at a time is taken away by who empties a node."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": dict(labels)}},
    }


def manifest_text(documents: Sequence[Document], head: Sequence[str]) -> str:
    """YAML of documents, below lines of comment."""
    import yaml

    class _Plain(yaml.SafeDumper):
        """Every document is written out: what is there twice is no reference."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    comment = "".join(f"# {line}".rstrip() + "\n" for line in head)
    pieces = [yaml.dump(one, Dumper=_Plain, sort_keys=False, width=120) for one in documents]
    return comment + "---\n" + "---\n".join(pieces)


def write_manifest(path: Path, documents: Sequence[Document], head: Sequence[str]) -> None:
    """Write a manifest; the file is there whole or not at all.

    Args:
        path: of the file.
        documents: one after another.
        head: lines of comment in front, without their mark.

    Raises:
        FileProblemError: it cannot be written.
    """
    write_text_atomic(path, manifest_text(documents, head))
