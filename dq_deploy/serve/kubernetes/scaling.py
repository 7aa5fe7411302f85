"""How many replicas there are: a ScaledObject of KEDA on the server's own gauges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from dq_deploy.errors import OptionError

POLLING_SECONDS = 15
"""How often KEDA asks Prometheus, which itself asks the replicas as often."""

DOWN_AFTER_SECONDS = 300
"""Load must have been low for so long before a replica is taken away."""


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Between how many replicas, and by what.

    Attributes:
        least: replicas without load.
        most: replicas under any load.
        requests: that a replica is to hold, running and waiting: half of what it draws at once, so that the number of
            replicas still tells where a short queue turns requests away (docs/scale-out.md).
        prometheus: URL of the Prometheus that reads the replicas' metrics.
    """

    least: int
    most: int
    requests: int
    prometheus: str

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            OptionError: one is out of range, or the URL holds a password.
        """
        if self.least < 1:
            raise OptionError(f"`replicas` is {self.least}, expected at least 1: a replica takes long to start")
        if self.most < self.least:
            raise OptionError(f"`max_replicas` is {self.most}, expected at least {self.least}, the `replicas`")
        check_url(self.prometheus, "prometheus")


def check_url(url: str, option: str) -> None:
    """Refuse what is no URL of HTTP, and one that holds a password, which a manifest must not.

    Raises:
        OptionError: says so; the password is not repeated.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise OptionError(f"`{option}` holds a user or password before the @, which no manifest may; leave it out")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise OptionError(f"`{option}` is {url!r}, expected a URL as http://prometheus-server.monitoring.svc")


def scaled_object(name: str, *, deployment: str, pods: str, scaling: Scaling) -> dict[str, Any]:
    """The ScaledObject. Where Prometheus does not answer the number stays: a fallback would take replicas away.

    Args:
        name: of it.
        deployment: whose replicas are counted.
        pods: regular expression of their names, as the label `pod` of their metrics holds them.
        scaling: between how many, and by what.
    """
    gauges = " + ".join(f'sum({gauge}{{pod=~"{pods}"}})' for gauge in ("dq_requests_waiting", "dq_requests_running"))
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment},
            "minReplicaCount": scaling.least,
            "maxReplicaCount": scaling.most,
            "pollingInterval": POLLING_SECONDS,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior()}},
            "triggers": [
                {
                    "type": "prometheus",
                    "name": "requests",
                    "metricType": "AverageValue",
                    "metadata": {
                        "serverAddress": scaling.prometheus,
                        "query": gauges,
                        "threshold": str(scaling.requests),
                        "ignoreNullValues": "false",
                    },
                }
            ],
        },
    }


def _behavior() -> dict[str, Any]:
    """Up at once and by doubling, down slowly: one replica too many costs less than one that is missing."""
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "selectPolicy": "Max",
            "policies": [
                {"type": "Percent", "value": 100, "periodSeconds": POLLING_SECONDS},
                {"type": "Pods", "value": 4, "periodSeconds": POLLING_SECONDS},
            ],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": DOWN_AFTER_SECONDS,
            "policies": [{"type": "Percent", "value": 10, "periodSeconds": 60}],
        },
    }
