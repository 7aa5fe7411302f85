"""What can be asked by an infer request: the two models of every server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dq_deploy.errors import DqError
from dq_deploy.serve.kserve.body import InferRequest
from dq_deploy.serve.kserve.denoiser import denoiser_form, feeds_of, most_input_bytes, tensors_of
from dq_deploy.serve.kserve.forms import ModelForm, checked_inputs, wanted_outputs
from dq_deploy.serve.kserve.generate import MOST_INPUT_BYTES, generate_form, images_tensor, pictures_asked
from dq_deploy.serve.kserve.statistics import Statistics
from dq_deploy.serve.kserve.tensors import Tensor
from dq_deploy.serve.orders import Denoised, Event, Order, Picture, Terms
from dq_deploy.serve.service import Service
from dq_deploy.serve.steps import EngineCall


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """Outputs of a request, and what the pipeline warned of."""

    tensors: Sequence[Tensor]
    warnings: Sequence[str] = ()


class Model(ABC):
    """Something that an infer request may name.

    Attributes:
        statistics: of its requests.
    """

    def __init__(self, service: Service) -> None:
        """Of a service."""
        self.service = service
        self.statistics = Statistics()

    @property
    @abstractmethod
    def form(self) -> ModelForm:
        """What it takes and gives."""

    @property
    @abstractmethod
    def most_input_bytes(self) -> int | None:
        """Bytes of the inputs of the largest request; None where that is not known."""

    @abstractmethod
    def submit(self, asked: InferRequest, client: str, listener: Callable[[Event], None]) -> list[Order]:
        """Take a request.

        Args:
            asked: by the client.
            client: whose it is.
            listener: hears the events of the orders, from other threads.

        Raises:
            ApiError: it is not one that this model can answer.
            DqError: likewise, or the server takes no more.
        """

    @abstractmethod
    def answer(self, orders: Sequence[Order], found: Sequence[Picture | Denoised]) -> Answer:
        """The outputs of orders that are done."""


class DenoiserModel(Model):
    """One call of the engine. Executions are the engine's calls, those for steps of pictures among them."""

    def __init__(self, service: Service) -> None:
        """Of a service."""
        super().__init__(service)
        service.metrics.listeners.append(self._engine_called)

    def _engine_called(self, call: EngineCall) -> None:
        self.statistics.executed(call.rows, call.seconds)

    @property
    def form(self) -> ModelForm:
        """The engine's inputs and outputs."""
        return denoiser_form(self.service.engine, self.service.limits.max_batch)

    @property
    def most_input_bytes(self) -> int | None:
        """Of as many samples as one call holds."""
        return most_input_bytes(self.service.engine, self.service.limits.max_batch)

    def submit(self, asked: InferRequest, client: str, listener: Callable[[Event], None]) -> list[Order]:
        """Take a request for one call."""
        form, limits = self.form, self.service.limits
        given = checked_inputs(asked, form)
        wanted_outputs(asked, form)
        feeds = feeds_of(given, self.service.engine, limits.max_batch)
        seconds = limits.time_limit_s if asked.timeout_s is None else min(asked.timeout_s, limits.time_limit_s)
        terms = Terms(client=client, priority=asked.priority, time_limit_s=seconds, trace_parent=asked.trace_parent)
        return [self.service.denoise(feeds, terms, listener=listener)]

    def answer(self, orders: Sequence[Order], found: Sequence[Picture | Denoised]) -> Answer:
        """The engine's outputs."""
        return Answer(tensors=[t for event in found if isinstance(event, Denoised) for t in tensors_of(event.outputs)])


class GenerateModel(Model):
    """Pictures, each with its own seed."""

    @property
    def form(self) -> ModelForm:
        """What there is for the pipeline."""
        return generate_form(self.service.card, self.service.engine.engine)

    @property
    def most_input_bytes(self) -> int | None:
        """Of the longest prompts."""
        return MOST_INPUT_BYTES

    def submit(self, asked: InferRequest, client: str, listener: Callable[[Event], None]) -> list[Order]:
        """Take a request for pictures: one of the server's requests for each."""
        service, form = self.service, self.form
        given = checked_inputs(asked, form)
        wanted_outputs(asked, form)
        pictures = pictures_asked(given, asked, service.card, client, service.limits.time_limit_s)
        orders: list[Order] = []
        try:
            orders.extend(service.submit(p.call, p.terms, listener=listener, file=p.file) for p in pictures)
        except DqError:
            for order in orders:
                service.cancel(order.id)
            raise
        return orders

    def answer(self, orders: Sequence[Order], found: Sequence[Picture | Denoised]) -> Answer:
        """Their pixels."""
        pictures = [order.pictures[0] for order in orders]
        for order in orders:
            began, ended = order.started_at, order.ended_at
            if began is not None and ended is not None:  # as it is of all that are done
                self.statistics.executed(1, ended - began)
        warnings = dict.fromkeys(remark for picture in pictures for remark in picture.remarks)
        return Answer(tensors=[images_tensor(pictures)], warnings=list(warnings))
