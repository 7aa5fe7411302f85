"""Asks a service for pictures and waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from dq_deploy.models.pipeline import PipelineCall
from dq_deploy.serve.orders import Event, Failure, Order, Picture, PictureFormat, Terms
from dq_deploy.serve.service import Service


class Answer:
    """The events of one request; `order` is there once it was taken."""

    order: Order

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.over = threading.Event()
        self.told = threading.Event()

    def tell(self, event: Event) -> None:
        self.events.append(event)
        self.told.set()

    def finished(self, order: Order) -> None:
        self.over.set()

    def wait(self) -> Answer:
        assert self.over.wait(60)
        return self

    @property
    def pictures(self) -> list[bytes]:
        """Files in the order of their index."""
        found = sorted((e for e in self.events if isinstance(e, Picture)), key=lambda e: e.index)
        return [picture.data for picture in found]

    @property
    def failure(self) -> Failure | None:
        return next((event for event in self.events if isinstance(event, Failure)), None)


def ask(service: Service, call: PipelineCall, terms: Terms | None = None, file: PictureFormat | None = None) -> Answer:
    """Ask for pictures without waiting."""
    answer = Answer()
    answer.order = service.submit(call, terms or Terms(), listener=answer.tell, file=file)
    with answer.order.lock:
        if answer.order.ended:
            answer.over.set()
        else:
            answer.order.on_end.append(answer.finished)
    return answer


def pictures_of(service: Service, call: PipelineCall, terms: Terms | None = None) -> list[bytes]:
    """Ask for pictures and wait for them."""
    answer = ask(service, call, terms).wait()
    assert answer.failure is None, answer.failure
    return answer.pictures


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something holds."""
    import time

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def all_over(answers: Iterable[Answer]) -> None:
    """Wait for several."""
    for answer in answers:
        answer.wait()
