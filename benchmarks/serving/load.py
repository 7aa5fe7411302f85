"""Clients that ask a server for pictures at once, and compare every answer with the one to the same request alone."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Body = Mapping[str, Any]


@dataclass(kw_only=True)
class Outcome:
    """What a load saw.

    Attributes:
        requests: that were answered.
        pictures: that came.
        lost: requests without an answer, or with another status than 200.
        wrong: answers that differ from those to the same request alone.
        seconds: from the first request to the last answer.
        latencies_s: of each request.
        memory_mib: resident memory of the server, at each tenth of the requests.
    """

    requests: int = 0
    pictures: int = 0
    lost: int = 0
    wrong: int = 0
    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Numbers of a results file."""
        return {
            "requests": self.requests,
            "pictures": self.pictures,
            "lost": self.lost,
            "wrong": self.wrong,
            "seconds": round(self.seconds, 2),
            "pictures_per_s": round(self.pictures / self.seconds, 2),
            "p50_s": round(float(np.percentile(self.latencies_s, 50)), 4),
            "p99_s": round(float(np.percentile(self.latencies_s, 99)), 4),
            "memory_mib": [round(value, 1) for value in self.memory_mib],
        }


class Client:
    """One connection to a server."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def pictures(self, body: Body) -> list[str] | None:
        """Pictures of an answer; None where its status is not 200."""
        self._connection.request(
            "POST", "/v1/images/generations", json.dumps(body), {"content-type": "application/json"}
        )
        response = self._connection.getresponse()
        answer = response.read()
        if response.status != 200:
            return None
        return [entry["b64_json"] for entry in json.loads(answer)["data"]]

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def answers_alone(port: int, bodies: Sequence[Body]) -> list[list[str]]:
    """The answer to each of some requests, asked one after another."""
    client, found = Client(port), []
    for body in bodies:
        answer = client.pictures(body)
        if answer is None:
            raise SystemExit(f"the server does not answer {body}")
        found.append(answer)
    client.close()
    return found


def load(
    port: int, bodies: Sequence[Body], alone: Sequence[list[str]] | None, *, clients: int, requests: int, pid: int
) -> Outcome:
    """Ask from several clients at once.

    Args:
        port: of the server.
        bodies: of the requests, one of which each request takes, in an order that is random and always the same.
        alone: the answers they got alone; None compares nothing.
        clients: connections, each asking as soon as it has its answer.
        requests: in all.
        pid: of the server.
    """
    outcome, lock = Outcome(), threading.Lock()
    order = random.Random(0).choices(range(len(bodies)), k=requests)
    left = iter(range(requests))

    def ask() -> None:
        client = Client(port)
        while True:
            with lock:
                number = next(left, None)
                if number is not None and number % max(1, requests // 10) == 0:
                    outcome.memory_mib.append(resident_mib(pid))
            if number is None:
                break
            began = time.monotonic()
            try:
                found = client.pictures(bodies[order[number]])
            except OSError:
                found = None
            took = time.monotonic() - began
            with lock:
                outcome.latencies_s.append(took)
                outcome.requests += 1
                outcome.lost += found is None
                outcome.pictures += len(found or ())
                outcome.wrong += alone is not None and found is not None and found != alone[order[number]]
        client.close()

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome.seconds = time.monotonic() - began
    outcome.memory_mib.append(resident_mib(pid))
    return outcome


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    import psutil

    return psutil.Process(pid).memory_info().rss / 2**20
